"""``calumma verify``: reads every stored byte again and compares it with the manifests.

A part is whole when every file that its manifest names is there with that size and sha256, is the table (or the
sequences) that the step writes, and holds as many rows as the ledger says. A step is whole when its own files are, its
parts are all there, and their manifests give the digest that it was committed with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, Literal

from infra.errors import CalummaError, StoreError
from infra.storage import Storage
from infra.store.commit import (
    PARTS,
    done_parts,
    entry_of_file,
    load_own_manifest,
    load_part,
    load_parts,
    own_retries,
    part_manifest_name,
    retry_of,
    step_manifest_name,
)
from infra.store.manifest import FileEntry, StepManifest
from tasks.addresses import Addresses, parse_part
from tasks.steps import STORES
from tasks.verify_tables import Shape, check_rows

IN_PROCESS = 64
"""Parts for which one process is enough: starting another takes about a second."""
TRAINED = ("image-tokenizer", "text-tokenizer", "pretrain", "finetune")
"""Steps that are not made again by themselves: what follows was made with their very bytes."""

What = Literal["missing", "size", "sha256", "table", "rows", "codes", "checksum", "manifest", "digest", "unlisted"]


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it was committed."""

    step: str
    part: str
    """Empty for what belongs to the step as a whole."""
    file: str
    """Relative to the step's folder."""
    what: What
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Unit:
    """What one process looks at: one part; or with an empty name the step's own files and digest."""

    root: str
    step: str
    fingerprint: str
    part: str
    shape: Shape


@dataclass
class Verdict:
    """What was read, and what is damaged."""

    parts: int = 0
    files: int = 0
    bytes: int = 0
    steps: list[str] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    """Files in steps' ``parts`` folders that no manifest names, relative to the work folder: harmless."""


Progress = Any
"""A ``rich.progress.Progress``, or None."""


def verify(
    addresses: Addresses,
    *,
    step: str | None = None,
    source: str | None = None,
    progress: Progress = None,
    processes: int | None = None,
) -> Verdict:
    """Reads every part and every finished step of the recipe, or those of one step or source."""
    sources = addresses.sources(source)
    verdict = Verdict(steps=[s for s in addresses.steps(step) if next(addresses.store(s).find(), None) is not None])
    shape = Shape.of(addresses.recipe)
    units: list[Unit] = []
    for name in verdict.steps:
        parts = sorted(committed_parts(addresses.store(name)))
        if name in STORES and source is not None:
            named = {*parts, *lost_parts(addresses.store(name))}
            parts = sorted(p for p in named if (found := parse_part(p)) and found.source in sources)
        elif source is not None:
            parts = []
        root, fingerprint = addresses.store(name).root, addresses.prints[name]
        units += [Unit(root, name, fingerprint, part, shape) for part in parts]
        units += [Unit(root, name, fingerprint, "", shape)] if source is None else []
    task = progress.add_task("reading", total=len(units)) if progress is not None else None
    for unit, (entries, damage) in zip(units, _run(units, processes), strict=True):
        verdict.parts += bool(unit.part)
        verdict.files += len(entries)
        verdict.bytes += sum(e.bytes for e in entries)
        verdict.damage += damage
        if progress is not None:
            progress.update(task, advance=1, description=f"{unit.step} {unit.part}")
    if source is None:
        for name in verdict.steps:
            verdict.leftovers += (f"{addresses.folder(name)}/{f}" for f in unnamed_files(addresses.store(name)))
    return verdict


def committed_parts(store: Storage) -> set[str]:
    """The parts that have a manifest; a part's own files in JSON (``losses.results.json``) are none."""
    made = done_parts(store)
    return {p for p in made if parse_part(p) is not None or p.rpartition(".")[0] not in made}


def lost_parts(store: Storage) -> set[str]:
    """Parts that a manifest of the step or of its retries lists, and whose own manifest is missing."""
    listed = set[str]()
    for retry in (0, *own_retries(store)):
        with suppress(StoreError):  # named where the step is checked
            if (step := load_own_manifest(store, retry)) is not None:
                listed |= {*step.parts}
    return listed - committed_parts(store)


def unnamed_files(store: Storage) -> list[str]:
    """Files in a step's ``parts`` folder that no manifest names, relative to the step's folder: a killed writer's.

    The files of a part that was committed and whose manifest is missing are none of them.
    """
    made, lost = committed_parts(store), lost_parts(store)
    named = {part_manifest_name(part) for part in made}
    with suppress(StoreError):  # a damaged manifest: what it named is not known, so nothing counts as unnamed
        for manifest in load_parts(store, sorted(made)):
            named |= {f"{PARTS}/{entry.name}" for entry in manifest.files}
        for retry in (0, *own_retries(store)):
            if (step := load_own_manifest(store, retry)) is not None:
                named |= {entry.name for entry in step.files}
        own = tuple(f"{PARTS}/{part}." for part in lost)
        unnamed = (f.name for f in store.find(PARTS) if f.name not in named and not f.name.startswith(own))
        return [name for name in unnamed if not lost or name.count("/") == 1]  # mix's files: not named after its parts
    return []


def _run(units: Sequence[Unit], processes: int | None) -> Iterator[tuple[list[FileEntry], list[Damage]]]:
    size = min(processes if processes is not None else os.cpu_count() or 1, -(-len(units) // IN_PROCESS))
    if size <= 1:
        yield from map(check_unit, units)
        return
    with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
        yield from pool.map(check_unit, units, chunksize=max(1, min(16, len(units) // (4 * size))))


def check_unit(unit: Unit) -> tuple[list[FileEntry], list[Damage]]:
    """What was read of a part or a step, and what is wrong with it; never raises for what is stored there."""
    return _Checker(unit).part() if unit.part else _Checker(unit).step()


class _Checker:
    def __init__(self, unit: Unit) -> None:
        self._unit, self._store = unit, Storage(unit.root)
        self._damage: list[Damage] = []
        self._read: list[FileEntry] = []

    def part(self) -> tuple[list[FileEntry], list[Damage]]:
        unit = self._unit
        name = part_manifest_name(unit.part)
        if not self._store.exists(name):
            self._add(name, "missing", "the part's manifest", "no such file")
            return self._result()
        try:
            manifest = load_part(self._store, unit.part)
        except CalummaError as e:
            self._add(name, "manifest", "a part's manifest", str(e))
            return self._result()
        said = (manifest.part, manifest.step, manifest.fingerprint)
        if said != (unit.part, unit.step, unit.fingerprint):
            self._add(name, "manifest", f"{unit.part} of {unit.step} {unit.fingerprint[:12]}", " ".join(said))
        whole = [self._file(entry.model_copy(update={"name": f"parts/{entry.name}"})) for entry in manifest.files]
        if all(whole):  # what a damaged file holds would only say the same again
            for file, what, expected, found in check_rows(self._store, unit.step, manifest, unit.shape):
                self._add(file, what, expected, found)
        return self._result()

    def step(self) -> tuple[list[FileEntry], list[Damage]]:
        made, known, held, readable = committed_parts(self._store), set[str](), set[int](), True
        for retry in (0, *own_retries(self._store)):
            name = step_manifest_name(retry)
            try:
                manifest = load_own_manifest(self._store, retry)
            except CalummaError as e:
                readable = self._add(name, "manifest", "a step's manifest", str(e))
                continue
            if manifest is None:
                continue
            said = (manifest.step, manifest.fingerprint)
            if said != (self._unit.step, self._unit.fingerprint):
                self._add(name, "manifest", f"{self._unit.step} {self._unit.fingerprint[:12]}", " ".join(said))
            for entry in manifest.files:
                self._file(entry)
            self._digest(name, manifest, made)
            known |= set(manifest.parts)
            held |= {retry, *map(retry_of, manifest.parts)}
        if readable:  # else nobody knows what it listed
            for part in sorted(made - known):
                if retry_of(part) in held:  # while a step or its retry is under way, its parts are not listed yet
                    self._add(part_manifest_name(part), "unlisted", "no part of this name", "a part's manifest", part)
        return self._result()

    def _digest(self, name: str, manifest: StepManifest, made: set[str]) -> None:
        gone = [part for part in manifest.parts if part not in made]
        for part in gone:
            self._add(part_manifest_name(part), "missing", "the part's manifest", "no such file", part)
        if gone or not manifest.parts_digest:
            return
        digest = hashlib.blake2b(digest_size=16)
        try:
            for found in load_parts(self._store, manifest.parts):
                digest.update(found.dump())
        except CalummaError:
            return  # named with its part
        if digest.hexdigest() != manifest.parts_digest:
            self._add(name, "digest", manifest.parts_digest, f"{digest.hexdigest()}: a part's manifest changed")

    def _file(self, entry: FileEntry) -> bool:
        """Whether a file is there and is what was written."""
        about = self._store.info(entry.name)
        if about is None:
            return self._add(entry.name, "missing", f"{entry.bytes:,} bytes", "no such file")
        if about.size != entry.bytes:
            return self._add(entry.name, "size", f"{entry.bytes:,} bytes", f"{about.size:,} bytes")
        try:
            found = entry_of_file(self._store, entry.name)
        except (StoreError, OSError) as e:
            return self._add(entry.name, "missing", f"{entry.bytes:,} bytes", str(e))
        self._read.append(found)
        if found.sha256 != entry.sha256:
            return self._add(entry.name, "sha256", entry.sha256, found.sha256)
        return True

    def _add(self, file: str, what: What, expected: str, found: str, part: str | None = None) -> bool:
        self._damage.append(
            Damage(self._unit.step, self._unit.part if part is None else part, file, what, expected, found)
        )
        return False

    def _result(self) -> tuple[list[FileEntry], list[Damage]]:
        return self._read, self._damage
