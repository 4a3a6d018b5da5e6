"""Kills processes of running pipelines at random moments and checks that not one sample is lost, doubled or changed.

    python -m benchmarks.kill_campaign [--runs 20] [--samples 10000] [--seed 0] [--folder DIR] [--broken] [--json]

One undisturbed run over a mixed corpus with bad files is the measure. Each further run is killed once, with SIGKILL:
the job's driver, a worker, the raylet or the flow itself, in scan, select, encode or tokenize, at a random moment or
exactly between a part's data and its manifest; then it is let go on, or started again, to its end. Its stores must be
equal to the undisturbed run's byte for byte, the parts that were committed before the kill untouched, and its ledger
closed.

``--broken`` makes every process write the manifest before the data. The campaign must then find fault, or it is blind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.common import emit
from benchmarks.corpus import SOURCES, make_corpus
from benchmarks.stores import PHASES, check, committed, ledger, stored
from infra.errors import CalummaError
from infra.home import local_side
from infra.prefect_local import end_prefect, start_prefect, wait_for_prefect
from infra.processes import MARK
from infra.ray_local import end_ray
from infra.store.commit import PARTS
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import load_recipe

TOKENIZERS = ("image-tokenizer", "text-tokenizer")
VICTIMS = {"driver": ("tasks.job",), "worker": ("ray::Committer",), "raylet": ("raylet/raylet",), "flow": ()}
DEADLINE_S = 600
BROKEN = """
import os, time
import infra.store.commit as commit
def backwards(store, manifest, files):
    name = commit.part_manifest_name(manifest.part)
    if store.exists(name):
        return commit.load_part(store, manifest.part)
    manifest = manifest.model_copy(update={"files": [commit.entry(n, files[n]) for n in sorted(files)]})
    won = store.put_new(name, manifest.dump())
    time.sleep(0.02)
    for file, data in sorted(files.items()):
        store.put(f"parts/{file}", data)
    return manifest
commit.commit_part = backwards
"""


@dataclass
class Outcome:
    """What one killed run showed."""

    phase: str
    victim: str
    between: bool
    """Whether a part lay there with data and no manifest (or the reverse) when the process was killed."""
    committed: int
    """Parts that were committed before the kill, over all phases."""
    struck: bool = False
    """Whether the phase was still going on; a kill that came too late shows nothing, and is tried again."""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def main() -> None:
    """Runs the campaign and ends with its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps everything here; default: a temporary folder")
    parser.add_argument("--broken", action="store_true", help="commits in the wrong order: must find faults")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="calumma-kills-") as folder:
        root = (arguments.folder or Path(folder)).absolute()
        root.mkdir(parents=True, exist_ok=True)
        figures = Campaign(root, arguments.samples, arguments.seed, arguments.broken).run(arguments.runs)
    emit(figures, arguments.json)
    sys.exit(1 if figures["faults"] and not arguments.broken else 0)


class Campaign:
    """One corpus, one undisturbed run, many killed ones."""

    def __init__(self, root: Path, samples: int, seed: int, broken: bool) -> None:
        self.root, self.rng, self.broken = root, random.Random(seed), broken
        self.recipe_file = write_recipe(root / "corpus", samples, seed)
        self.recipe = load_recipe(self.recipe_file)

    def run(self, runs: int) -> dict[str, Any]:
        with prefect_server(self.root) as api:
            self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREFECT_API_URL": api}
            measure = self.root / "undisturbed"
            finish(self.start(measure))
            before = stored(measure, self.recipe)
            rows = ledger(measure, self.recipe)
            print(f"undisturbed: {len(before):,} files, {rows['scan'].entered:,} samples, {rows['scan']}", flush=True)
            if self.broken:
                hook = self.root / "broken"
                hook.mkdir(exist_ok=True)
                (hook / "sitecustomize.py").write_text(BROKEN)
                before_it = os.environ.get("PYTHONPATH")
                self.environment["PYTHONPATH"] = f"{hook}{os.pathsep}{before_it}" if before_it else str(hook)
            outcomes = []
            for number in range(runs):
                for _ in range(3):
                    outcome = self.killed_run(number, measure, before)
                    if outcome.struck or outcome.faults:
                        break
                outcomes.append(outcome)
                how = "between data and manifest" if outcome.between else "at a random moment"
                how += "" if outcome.struck else ", too late"
                print(
                    f"{number + 1:>3} {outcome.victim} in {outcome.phase} {how}, {outcome.committed} parts committed, "
                    f"{outcome.seconds:.0f} s: {'; '.join(outcome.faults) or 'equal'}",
                    flush=True,
                )
        return {
            "runs": runs,
            "samples": rows["scan"].entered,
            "work_items": len([n for n in before if n.startswith("scan/") and n.endswith(".json") and PARTS in n]),
            "kills_by_phase": dict(Counter(o.phase for o in outcomes if o.struck)),
            "kills_by_victim": dict(Counter(o.victim for o in outcomes if o.struck)),
            "between_data_and_manifest": sum(o.between for o in outcomes),
            "faults": sum(bool(o.faults) for o in outcomes),
        }

    def killed_run(self, number: int, measure: Path, before: dict[str, str]) -> Outcome:
        workdir = self.root / f"run-{number:03}"
        prints = fingerprints(self.recipe)
        for step in TOKENIZERS:  # equal by construction, and no part of what is killed here
            shutil.copytree(measure / folder_of(step, prints[step]), workdir / folder_of(step, prints[step]))
        phase, between = PHASES[number % len(PHASES)], number % 3 == 0
        # select works in the job's own process
        choice = ("driver",) if phase == "select" else ("worker",)
        if not between:
            choice = tuple(v for v in VICTIMS if phase != "select" or v != "worker")
        victim = self.rng.choice(choice)
        started = time.monotonic()
        flow = self.start(workdir)
        outcome = Outcome(phase, victim, False, 0)
        try:
            parts = workdir / folder_of(phase, prints[phase]) / PARTS
            moment = self.rng.randrange(4, 120)
            wait_for(lambda: flow.poll() is not None or count(parts) > 0, "the phase")
            pids = processes(victim, workdir, flow)  # before the moment: looking for them takes longer than a commit
            wait_for(lambda: flow.poll() is not None or count(parts) >= moment, "the moment")
            if between:
                wait_for(lambda: flow.poll() is not None or half_done(parts), "a part between data and manifest", 0.0)
            outcome.struck = bool(pids) and not (parts.parent / "manifest.json").exists()
            kill(pids)
            outcome.between = half_done(parts)
            known = {
                name: state for step in PHASES for name, state in committed(workdir, folder_of(step, prints[step]))
            }
            outcome.committed = len(known) // 2
            if victim == "flow":
                flow.communicate()
                flow = self.start(workdir)
            finish(flow)
        except (CalummaError, subprocess.SubprocessError, AssertionError) as e:
            outcome.faults.append(f"did not end: {e}"[-300:])
        else:
            outcome.faults += check(workdir, self.recipe, before, known)
        finally:
            with suppress(ProcessLookupError):
                flow.kill()
            end_ray(local_side(str(workdir)))
        outcome.seconds = time.monotonic() - started
        if not outcome.faults:
            shutil.rmtree(workdir)
        return outcome

    def start(self, workdir: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flows.cli", "run", str(self.recipe_file), "--workdir", str(workdir)]
        return subprocess.Popen(
            [*command, "--to", "tokenize"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            start_new_session=True,
        )


def write_recipe(folder: Path, samples: int, seed: int) -> Path:
    """The corpus and a recipe over it, with tokenizers that are quick to make."""
    sources = make_corpus(folder, samples, seed)
    recipe = {
        "name": "kills",
        "sources": sources,
        "scan": {"item_samples": max(1, samples // 125), "held_out": 0.02, "min_side": 8},
        "select": {"exact_duplicates": True, "perceptual_duplicates": True},
        "vocabulary": {"image_codes": 64, "text_start": 72, "size": 1096},
        "image_tokenizer": {
            **{"resolution": 32, "codes": 64, "channels": 8, "norm_groups": 4, "multipliers": [1, 1, 2]},
            **{"residual_blocks": 1, "z_channels": 8, "embed_dim": 8},
        },
        "image_tokenizer_training": {
            **{"steps": 10, "batch": 8, "pictures": 200, "perceptual_weight": 0, "discriminator_start": 1_000_000},
            **{"learning_rate": 0.001},
        },
        "encode": {"batch": 32},
        "mix": {
            "tokens": 100_000,
            "sequence_length": 256,
            "stages": [{"name": "one", "share": 1, "weights": {SOURCES[0]: 1}}],
        },
        "finetune_mix": {"sources": []},
        "text_tokenizer": {"sample_bytes": 200_000},
        "resources": {"data_workers": 2, "data_cpus": 0.5, "max_failures": 10},
    }
    path = folder / "kills.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@contextmanager
def prefect_server(root: Path) -> Iterator[str]:
    """One server for all runs; its start would be a good part of each."""
    home = root / "server"
    server = start_prefect(home)
    try:
        wait_for_prefect(home, server)
        yield f"{server.address}/api"
    finally:
        end_prefect(home)


def wait_for(condition: Callable[[], bool], what: str, pause: float = 0.002) -> None:
    """Returns when the condition holds; AssertionError if that takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S} s for {what}"
        time.sleep(pause)


def count(parts: Path) -> int:
    """Files in a step's parts folder, of whatever kind."""
    with suppress(FileNotFoundError):
        return len(list(parts.iterdir()))
    return 0


def half_done(parts: Path) -> bool:
    """Whether a part has data and no manifest, or a manifest and no data."""
    try:
        names = [p.name for p in parts.iterdir()]
    except FileNotFoundError:
        return False
    data = {
        n.removesuffix(".parquet") for n in names if n.endswith(".parquet") and not n.endswith(".quarantine.parquet")
    }
    return data != {n.removesuffix(".json") for n in names if n.endswith(".json") and not n.startswith(".")}


def processes(victim: str, workdir: Path, flow: subprocess.Popen[str]) -> list[int]:
    """The processes of that role of this run."""
    if victim == "flow":
        return [flow.pid]
    record = workdir / "runs" / "ray.json"
    mark = json.loads(record.read_text())["mark"] if record.exists() else "none"
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            # Ray's workers write a title over their environment and their command line; the node's folder is in both.
            ours = str(workdir) in line or mark in line or process.environ().get(MARK) == mark or _below(process, mark)
            if ours and all(word in line for word in VICTIMS[victim]):
                found.append(process.pid)
    return found


def _below(process: psutil.Process, mark: str) -> bool:
    return any(mark in " ".join(p.cmdline()) for p in process.parents())


def kill(pids: list[int]) -> None:
    """SIGKILL to all of them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def finish(flow: subprocess.Popen[str]) -> None:
    """Waits for a run's good end; CalummaError with its last words if it ends otherwise."""
    output, _ = flow.communicate(timeout=DEADLINE_S)
    if flow.returncode != 0:
        raise CalummaError(f"exit code {flow.returncode}: {output[-2000:]}")


if __name__ == "__main__":
    main()
