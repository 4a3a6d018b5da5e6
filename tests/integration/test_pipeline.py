"""The pipeline from raw files to the report: what it leaves, that it is done once, that killing it loses nothing."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infra.storage import Storage
from infra.store.commit import load_step
from infra.store.manifest import StepManifest
from tasks.fingerprint import fingerprints, folder_of
from tasks.steps import NAMES
from tests.integration import toy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
STORES = ("scan", "select", "encode", "tokenize", "mix")
TOKENIZERS = ("image-tokenizer", "text-tokenizer")


def manifests(workdir: Path) -> dict[str, StepManifest]:
    prints = fingerprints(toy.toy_recipe())
    found = {step: load_step(Storage(workdir).sub(folder_of(step, prints[step]))) for step in NAMES}
    assert all(found.values())
    return {step: m for step, m in found.items() if m}


def test_every_step_is_done_and_the_ledger_closes(undisturbed: Path) -> None:
    found = manifests(undisturbed)
    for step, manifest in found.items():
        assert all(rows.balance == 0 for rows in manifest.rows.values()), step
    for earlier, later in (("scan", "select"), ("select", "encode"), ("encode", "tokenize")):
        for source, rows in found[later].rows.items():
            assert rows.entered == found[earlier].rows[source].out, f"{earlier} → {later}, {source}"
    assert found["tokenize"].tokens["image"] > 0
    output = (undisturbed.parent / "output.txt").read_text()
    assert all(f"{step}" in output for step in NAMES)
    assert "To try next:" in output
    report = undisturbed / folder_of("report", fingerprints(toy.toy_recipe())["report"]) / "report.html"
    assert report.stat().st_size > 10_000
    assert "report.html" in output


def test_nothing_is_done_twice(undisturbed: Path) -> None:
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in undisturbed.rglob("*")}

    before, submitted = state(), toy.jobs(undisturbed)
    assert "Nothing to do: 12 of 12" in toy.run(undisturbed)
    assert toy.jobs(undisturbed) == submitted
    assert state() == before


def test_a_changed_recipe_redoes_only_what_depends_on_it(undisturbed: Path) -> None:
    words = ["status", str(undisturbed), "--set", "finetune.epochs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words], capture_output=True, text=True, check=True, env={"COLUMNS": "200"}
    )
    lines = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.count("│") == 6}
    assert all("done" in lines[s] for s in NAMES[: NAMES.index("finetune")])
    assert "finetune.epochs" in lines["finetune"]
    assert "step finetune" in lines["evaluate"]


def test_kills_at_several_steps_change_no_byte(undisturbed: Path, tmp_path: Path) -> None:
    """A job's driver during scan, the raylet during encode, the flow itself during mix; the tokenizers are the same."""
    workdir, rng = tmp_path / "work", random.Random(7)
    prints = fingerprints(toy.toy_recipe())
    for step in TOKENIZERS:
        name = folder_of(step, prints[step])
        shutil.copytree(undisturbed / name, workdir / name)

    def kill(step: str, *words: str) -> None:
        toy.wait_for(lambda: bool(toy.jobs(workdir, f"{step}-")), 180, f"step {step}")
        victims: list[int] = []

        def found() -> bool:
            victims[:] = [p.pid for p in toy.processes(*words)]
            return bool(victims) or bool(toy.jobs(workdir, f"{NAMES[NAMES.index(step) + 1]}-"))

        toy.wait_for(found, 60, f"a process with {words}")
        toy.time.sleep(rng.uniform(0, 1.5))
        for pid in victims:
            try:
                toy.os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    flow = toy.start(workdir)
    kill("scan", "tasks.job", "scan", str(workdir))
    mark = json.loads((workdir / "runs" / "ray.json").read_text())["mark"]
    kill("encode", "raylet/raylet", f"calumma-ray-{mark}")
    toy.wait_for(lambda: bool(toy.jobs(workdir, "mix-")), 240, "step mix")
    flow.send_signal(signal.SIGKILL)
    flow.communicate()
    toy.run(workdir, "--only", "mix")
    recipe = toy.toy_recipe()
    assert toy.store_files(workdir, STORES, recipe) == toy.store_files(undisturbed, STORES, recipe)
    assert toy.processes("tasks.job", str(workdir)) == []
    assert not (workdir / "runs" / "ray.json").exists(), "what the killed flow left running is ended"
