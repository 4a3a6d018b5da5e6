"""What two runs' stores must have in common, and how a difference is found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from infra.storage import Storage
from infra.store.commit import PARTS, load_parts, load_step
from infra.store.manifest import Rows
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe
from tasks.steps import STORES as PHASES


def stored(workdir: Path, recipe: Recipe) -> dict[str, str]:
    """sha256 of every file of the four stores, by name within the work folder."""
    prints = fingerprints(recipe)
    found = {}
    for step in PHASES:
        for path in sorted(p for p in (workdir / folder_of(step, prints[step])).rglob("*") if p.is_file()):
            found[str(path.relative_to(workdir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def committed(workdir: Path, folder: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Files of committed parts, with what would change if anybody wrote them again."""
    parts = workdir / folder / PARTS
    for manifest in parts.glob("*.json") if parts.is_dir() else ():
        for path in (manifest, manifest.with_suffix(".parquet")):
            with suppress(FileNotFoundError):
                facts = path.stat()
                yield str(path.relative_to(workdir)), (facts.st_mtime_ns, facts.st_ino)


def ledger(workdir: Path, recipe: Recipe) -> dict[str, Rows]:
    """Each step's line over all sources."""
    prints = fingerprints(recipe)
    found: dict[str, Rows] = {}
    for step in PHASES:
        manifest = load_step(Storage(workdir).sub(folder_of(step, prints[step])))
        assert manifest is not None, f"{step} is not finished"
        rows = list(manifest.rows.values())
        found[step] = sum(rows, Rows())
    return found


def check(workdir: Path, recipe: Recipe, before: dict[str, str], known: dict[str, tuple[int, int]]) -> list[str]:
    """What is wrong with a run that was killed and went on; empty if nothing."""
    faults = []
    now = stored(workdir, recipe)
    if now != before:
        lost, more = sorted(before.keys() - now.keys()), sorted(now.keys() - before.keys())
        changed = sorted(n for n in before.keys() & now.keys() if before[n] != now[n])
        faults.append(f"stores differ: {len(lost)} files lost, {len(more)} more, {len(changed)} changed {changed[:2]}")
    for name, (time_ns, inode) in known.items():
        facts = (workdir / name).stat() if (workdir / name).exists() else None
        if facts is None or (facts.st_mtime_ns, facts.st_ino) != (time_ns, inode):
            faults.append(f"{name} was committed before the kill and written again")
            break
    rows = ledger(workdir, recipe)
    faults += [f"the ledger of {step} is open by {line.balance}" for step, line in rows.items() if line.balance]
    faults += [
        f"{rows[a].out} samples leave {a} and {rows[b].entered} enter {b}"
        for a, b in pairwise(PHASES)
        if rows[a].out != rows[b].entered
    ]
    prints = fingerprints(recipe)
    for step in PHASES:
        store = Storage(workdir).sub(folder_of(step, prints[step]))
        manifest = load_step(store)
        assert manifest is not None
        for part in load_parts(store, manifest.parts):
            for file in part.files:
                data = store.get_or_none(f"{PARTS}/{file.name}")
                if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
                    faults.append(f"{step}: {file.name} is not what its manifest names")
                    break
    return faults
