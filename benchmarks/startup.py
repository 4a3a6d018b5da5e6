"""How long a step takes to begin, and what it holds, when there is very much to do: 100,000 tars, 1 B samples.

    python -m benchmarks.startup [--json] [--items 100000]

What is timed is the real step ``scan`` in a process of its own (imports included), from the source's listing to the
moment at which the first work item is opened: once with nothing done (``plan_``), once with 99% of the parts committed
in a folder on this disk (``resume_``). The tars exist in a listing only: a file system that answers ``ls`` with 100
folders of tars and ends the process when one is opened. ``later_`` is the real step ``tokenize`` up to its first part,
with 99% done: it reads the manifests of all the parts that ``encode`` made. Ray is not started: its few seconds do not
depend on how much there is to do.
Memory is the process's highest resident size; ``bytes_per_item`` is what it grows by from a tenth of the items to all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec import AbstractFileSystem

from benchmarks.common import emit, machine_line

if TYPE_CHECKING:
    from infra.store.manifest import FileEntry
    from tasks.context import StepContext
    from tasks.pool import PartOutput

FOLDERS = 100
SAMPLES_PER_TAR = 10_000
SHARE_DONE = 0.99
MOST_LINKS = 50_000
"""To one file: disks allow some 65,000. Empty tables are links, since making 100,000 files takes most of the time."""


class FirstItem(BaseException):
    """The first work item was opened: what the benchmark waits for."""


class SimulatedFiles(AbstractFileSystem):  # type: ignore[misc]
    """``simulated://N``: N tars in 100 folders, which are listed and never read."""

    protocol = "simulated"
    cachable = False

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """A folder's entries, as an object store lists them."""
        root, _, folder = self._strip_protocol(path).partition("/")
        if folder:
            per_folder = int(root) // FOLDERS
            names = [f"{root}/{folder}/{n:06d}.tar" for n in range(per_folder)]
            found = [{"name": n, "size": 800_000_000, "type": "file", "created": "1"} for n in names]
        else:
            found = [{"name": f"{root}/{n:03d}", "size": 0, "type": "directory"} for n in range(FOLDERS)]
        return found if detail else [f["name"] for f in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Everything that is asked for by name is a folder: files are only listed."""
        return {"name": self._strip_protocol(path), "size": 0, "type": "directory"}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        raise FirstItem(path)


def measure(items: int, workdir: Path, step: str) -> dict[str, Any]:
    """Runs ``scan`` or ``tokenize`` up to the first item; seconds, MiB of this process, that item."""
    from tasks.documents import run as documents
    from tasks.scan import run as scan

    documents.DocumentMaker = _Opener  # type: ignore[assignment, misc]
    context = _context(items, workdir, step)
    started = time.perf_counter()
    try:
        if step == "scan":
            scan.run(context, workers=0)
        else:
            documents.run(context, workers=0)
    except FirstItem as first:
        seconds, name = time.perf_counter() - started, str(first)
    return {"seconds": seconds, "mib": peak_mib(), "first": name}


def peak_mib() -> float:
    """The highest resident size of this process since it began to run this program, MiB.

    ``getrusage`` would give that of the process that started it, where that is larger.
    """
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


class _Opener:
    """Stands for the step's worker."""

    def __init__(self, context: StepContext) -> None:
        pass

    def process(self, item: Any) -> PartOutput:
        raise FirstItem(item.part)


def commit_most(items: int, workdir: Path) -> int:
    """Writes what 99% of the items left behind in ``scan``'s folder: a manifest and a table (empty here) a part."""
    from infra.store.manifest import FileEntry

    context = _context(items, workdir, "scan")
    folder = context.store().path("parts")
    folder.mkdir(parents=True, exist_ok=True)
    empty = folder
    count = int(items * SHARE_DONE)
    for index in range(count):
        file = FileEntry(name=f"{part_name(index)}.parquet", bytes=0, sha256="0" * 64)
        _write_part(folder, context, index, [file])
        if index % MOST_LINKS == 0:
            empty = folder / file.name
            empty.touch()
        else:
            os.link(empty, folder / file.name)
    return count


def part_name(index: int) -> str:
    """The part that a work item becomes."""
    from tasks.sources.base import WorkItem

    return WorkItem("web", index, {}).part


def _write_part(folder: Path, context: StepContext, index: int, files: list[FileEntry]) -> None:
    from infra.store.manifest import PartManifest, Rows

    rows = Rows(entered=SAMPLES_PER_TAR, out=SAMPLES_PER_TAR - 100, quarantined={"truncated": 60, "bad-json": 40})
    part = part_name(index)
    manifest = PartManifest(
        step=context.step, fingerprint=context.fingerprint, part=part, source="web", rows=rows, files=files
    )
    (folder / f"{part}.json").write_bytes(manifest.dump())


def hand_on(items: int, workdir: Path) -> None:
    """Makes of ``scan``'s parts a finished ``encode`` (the rest is added) and a ``tokenize`` that has 99% done."""
    from infra.store.manifest import StepManifest

    done, encode = _context(items, workdir, "scan").store().path("parts"), _context(items, workdir, "encode")
    parts, made = encode.store().path("parts"), _context(items, workdir, "tokenize").store().path("parts")
    parts.parent.mkdir(parents=True)
    made.mkdir(parents=True)
    done.rename(parts)
    for file in parts.iterdir():
        if file.suffix == ".json":
            os.link(file, made / file.name)
        else:
            file.rename(made / file.name)
    for index in range(int(items * SHARE_DONE), items):
        _write_part(parts, encode, index, [])
    names = [part_name(index) for index in range(items)]
    manifest = StepManifest(step="encode", fingerprint=encode.fingerprint, parts=names)
    encode.store().put("manifest.json", manifest.dump())


def _context(items: int, workdir: Path, step: str) -> StepContext:
    from tasks.context import StepContext
    from tasks.recipe import parse_recipe

    fsspec.register_implementation("simulated", SimulatedFiles, clobber=True)
    recipe = {
        "name": "startup",
        "folder": str(workdir),
        "sources": [
            {
                "name": "web",
                "type": "tasks.sources.webdataset:WebdatasetFiles",
                "kind": "pairs",
                "path": f"simulated://{items}",
            }
        ],
        "mix": {"tokens": 1000, "stages": [{"name": "one", "share": 1, "weights": {"web": 1}}]},
        "finetune_mix": {"sources": []},
    }
    return StepContext(parse_recipe(recipe), str(workdir), step)


def run(items: int) -> dict[str, float]:
    """The figures: seconds and MiB of planning and of going on with 99% done, for a tenth of the items and for all."""
    figures: dict[str, float] = {"items": items, "samples": items * SAMPLES_PER_TAR}
    for size in (items // 10, items):
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder)
            found = {"plan": _in_a_process(size, workdir, "scan")}
            done = commit_most(size, workdir)
            found["resume"] = _in_a_process(size, workdir, "scan")
            hand_on(size, workdir)
            found["later"] = _in_a_process(size, workdir, "tokenize")
            if found["later"]["first"] != f"web-{done:06d}" or found["resume"]["first"] == found["plan"]["first"]:
                raise SystemExit(f"with {done:,} parts done a step did not go on behind them: {found}")
            print(f"{size:,} work items, {done:,} of them done when the step goes on:")
        for name, what in found.items():
            print(f"  {name:7} {what['seconds']:6.1f} s until the first item, {what['mib']:5.0f} MiB at most")
            if size == items:
                figures |= {f"{name}_seconds": what["seconds"], f"{name}_mib": what["mib"]}
            else:
                figures |= {f"{name}_bytes_per_item": what["mib"]}
    for name in ("plan", "resume", "later"):
        grown = (figures[f"{name}_mib"] - figures[f"{name}_bytes_per_item"]) * 2**20
        figures[f"{name}_bytes_per_item"] = grown / (items - items // 10)
    return figures


def _in_a_process(items: int, workdir: Path, step: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.startup", "--items", str(items), "--measure", step]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    done = subprocess.run([*command, "--workdir", str(workdir)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"seconds": max(found["seconds"], time.perf_counter() - started)}  # with the imports


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    options.add_argument("--items", type=int, default=100_000, help="work items, a multiple of 1,000")
    options.add_argument("--measure", choices=("scan", "tokenize"), help=argparse.SUPPRESS)
    options.add_argument("--workdir", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.items, args.workdir, args.measure)))
        return
    print(machine_line())
    emit(run(args.items), args.json)


if __name__ == "__main__":
    main()
