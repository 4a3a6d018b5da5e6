"""``calumma clean``: removes from a work folder what no recipe addresses.

That is folders of steps that neither the last recipe nor any that is to be kept would find again, what killed writers
left behind, and records of jobs whose folder is gone. Only what has the form of something that Calumma wrote is
considered; links are never followed, and nothing is touched while a run holds the folder. A job that a killed flow left
on a cluster holds nothing, and may go on: see ``YOUNG_S``.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from infra.backends.base import ASIDE
from infra.errors import ResourceError, StoreError
from infra.home import is_remote, local_side
from infra.lock import locked
from infra.storage import Storage
from infra.store.commit import PARTS, holds_retry, load_own_manifest, load_parts, load_step, part_manifest_name
from infra.words import size_in_words
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import load_recipe
from tasks.scan.items import listed_retries
from tasks.status import last_recipe
from tasks.steps import NAMES, STORES
from tasks.verify import unnamed_files

Kind = Literal["step folder", "unfinished file", "unnamed file", "job record"]
_FOLDER = re.compile(r"[0-9a-f]{12}")
_JOB = re.compile(rf"(?P<step>{'|'.join(NAMES)})-(?P<print>[0-9a-f]{{32}})-(?:r\d+-)?\d+")
SHOWN = 40
YOUNG_S = 3600.0
"""Age, in seconds, below which files that no manifest names stay. A part's files are written before its manifest, by a
job that no lock of this machine tells of; between the two lie seconds, and the clock of a mounted disk may be off."""


@dataclass(frozen=True, slots=True)
class Waste:
    """Something that can go."""

    path: str
    """Relative to the work folder."""
    kind: Kind
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """What can go, and what was kept."""

    root: Path
    waste: tuple[Waste, ...]
    kept: tuple[str, ...]
    """Step folders that a recipe addresses and that are there."""
    warnings: tuple[str, ...] = ()
    """Why results of the last recipe may be among what would go."""
    young: int = 0
    """Files of writers that may still be at work: too young to go."""

    @property
    def bytes(self) -> int:
        return sum(w.bytes for w in self.waste)


def clean(workdir: str | Path, keep: Sequence[str] = (), *, delete: bool = False, force: bool = False) -> Found:
    """Finds what no recipe addresses, and with ``delete`` removes it.

    Args:
        keep: Recipes (names or files) whose steps stay, besides the folder's last one.
        force: Removes also where the last recipe's own results may be what goes.

    Raises:
        StoreError: Not a work folder, or one that is not on a local disk.
        SourceError: A source of one of the recipes cannot be read: then nobody knows which folders it addresses.
        ResourceError: A run holds the folder's lock; or results of the last recipe may go, and ``force`` is not given.
    """
    if is_remote(str(workdir)):
        raise StoreError(f"{workdir}: clean works on local work folders; on S3 remove prefixes by a lifecycle rule")
    root = local_side(str(workdir)).resolve()
    if not (root / "runs").is_dir():
        raise StoreError(f"{root}: not a work folder (it has no folder runs); nothing was touched")
    last = last_recipe(root)
    with locked(root):
        store = Storage(root)
        prints = [fingerprints(recipe, store) for recipe in (last, *map(load_recipe, keep))]
        kept = {folder_of(step, own[step]) for own in prints for step in NAMES}
        loose = [*_aside(root, kept), *_unnamed(root, kept)]
        waste = [*_folders(root, kept), *(w for w in loose if _is_old(root / w.path))]
        gone = {w.path for w in waste if w.kind == "step folder"}
        waste += _jobs(root, gone)
        there = tuple(sorted(f for f in kept if (root / f).is_dir()))
        warnings = tuple(_warnings(store, prints[0], gone))
        found = Found(root, tuple(waste), there, warnings, sum(not _is_old(root / w.path) for w in loose))
        if not delete:
            return found
        if warnings and not force:
            raise ResourceError(
                f"{root}: nothing was removed. {' '.join(warnings)} Finish that recipe first (calumma run), or keep "
                "the older one with --keep; to remove all the same, add --force."
            )
        removed = tuple(w for w in waste if _remove(root, w))
    return replace(found, waste=removed)


def _folders(root: Path, kept: set[str]) -> Iterator[Waste]:
    """Folders of steps that no recipe addresses."""
    for step in NAMES:
        for path in _entries(root / step):
            name = f"{step}/{path.name}"
            if path.is_dir() and not path.is_symlink() and _FOLDER.fullmatch(path.name) and name not in kept:
                yield Waste(name, "step folder", *_measure(path))


def _aside(root: Path, kept: set[str]) -> Iterator[Waste]:
    """What killed writers left in the folders that stay."""
    for folder in (root, root / "runs", *(root / name for name in sorted(kept))):
        if folder.is_symlink() or folder.parent.is_symlink() or not folder.is_dir():
            continue
        for path in _walk(folder) if folder != root else _entries(folder):
            if path.name.startswith(ASIDE) and path.is_file() and not path.is_symlink():
                yield Waste(path.relative_to(root).as_posix(), "unfinished file", 1, path.stat().st_size)


def _unnamed(root: Path, kept: set[str]) -> Iterator[Waste]:
    """Files beside committed parts that no manifest names."""
    for name in sorted(kept):
        folder = root / name
        if folder.is_dir() and not folder.is_symlink() and not folder.parent.is_symlink():
            for file in unnamed_files(Storage(folder)):
                path = folder / file
                if not path.is_symlink() and not path.parent.is_symlink():
                    yield Waste(f"{name}/{file}", "unnamed file", 1, path.stat().st_size)


def _jobs(root: Path, gone: set[str]) -> Iterator[Waste]:
    """Records of jobs whose step folder is not there, or will not be."""
    for path in _entries(root / "runs" / "jobs"):
        found = _JOB.fullmatch(path.name)
        if found is None or path.is_symlink() or not path.is_dir():
            continue
        folder = folder_of(found["step"], found["print"])
        if folder in gone or not (root / folder).is_dir():
            yield Waste(path.relative_to(root).as_posix(), "job record", *_measure(path))


def _warnings(store: Storage, prints: dict[str, str], gone: set[str]) -> Iterator[str]:
    """Where what would go may be the last recipe's own: made before sources, a step or a retry moved its address."""
    others = {step: sorted(g for g in gone if g.startswith(f"{step}/")) for step in NAMES}
    for step in (s for s in NAMES if others[s]):
        here = folder_of(step, prints[step])
        if load_step(store.sub(here)) is None:
            yield (
                f"{step}: the last recipe addresses {here}, which is not finished, and {', '.join(others[step])} would "
                "go: sources or a step's version changed, or a retry added samples."
            )
    stores = {step: store.sub(folder_of(step, prints[step])) for step in STORES}
    done = [s for s in stores.values() if load_own_manifest(s, 0) is not None]
    later = [g for step in NAMES[NAMES.index("mix") :] for g in others[step]]
    begun = [k for k in listed_retries(stores["scan"]) if not all(holds_retry(s, k) for s in done)]
    if later and begun:
        yield (
            f"retry {begun[0]} is under way, which moves mix and all that follows; {', '.join(later)} may be what was "
            "made with it (calumma retry ends it)."
        )


def _is_old(path: Path) -> bool:
    """Whether nobody can be about to name this file; also one that has gone meanwhile."""
    try:
        return time.time() - path.lstat().st_mtime >= YOUNG_S
    except FileNotFoundError:
        return True


def _is_named(root: Path, waste: Waste) -> bool:
    """Whether a manifest names the file by now."""
    folder, _, name = waste.path.partition(f"/{PARTS}/")
    store, pieces = Storage(root / folder), name.split(".")
    if "/" in name:  # files of sequences: their parts' names do not follow from theirs
        return f"{PARTS}/{name}" not in unnamed_files(store)
    parts = [".".join(pieces[:n]) for n in range(1, len(pieces))]
    made = load_parts(store, [part for part in parts if store.exists(part_manifest_name(part))])
    return any(name == entry.name for part in made for entry in part.files)


def _remove(root: Path, waste: Waste) -> bool:
    """Removes one thing, if it still may go: only what lies in the work folder itself, reached without a link."""
    path = root / waste.path
    if path.parent.resolve() != path.parent or path.is_symlink():
        raise ResourceError(f"{path}: reached by a link; nothing more was removed")
    if waste.kind in ("unnamed file", "unfinished file") and not _is_old(path):
        return False
    if waste.kind == "unnamed file" and _is_named(root, waste):
        return False
    if path.is_dir():
        shutil.rmtree(path)  # takes links away without following them
        with suppress(OSError):
            path.parent.rmdir()  # where it was the last
    else:
        path.unlink(missing_ok=True)
    return True


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder that is one, sorted; nothing for a link to one."""
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder, links not followed."""
    for path in _entries(folder):
        yield path
        yield from _walk(path)


def _measure(folder: Path) -> tuple[int, int]:
    """Files and bytes below a folder."""
    sizes = [p.lstat().st_size for p in _walk(folder) if not p.is_dir() or p.is_symlink()]
    return len(sizes), sum(sizes)


def render(found: Found, deleted: bool) -> Iterator[RenderableType]:
    """What went or would go, and how much that is."""
    for warning in found.warnings:
        yield Text(f"Look twice: {warning}", "yellow")
    if found.young:
        files = "1 file is" if found.young == 1 else f"{found.young:,} files are"
        yield Text(
            f"{files} named by no manifest and younger than an hour: a job that a killed run left on a cluster may be "
            "about to name them, so they stay.",
            "dim",
        )
    if not found.waste:
        yield Text(f"Nothing to remove: every folder in {found.root} belongs to a recipe that is kept.", "green")
        return
    table = Table(title="Removed" if deleted else "To be removed", title_justify="left")
    for column in ("what", "kind", "files", "size"):
        table.add_column(column, justify="right" if column in ("files", "size") else "left", overflow="fold")
    for w in found.waste[:SHOWN]:
        table.add_row(Text(w.path), w.kind, f"{w.files:,}", size_in_words(w.bytes))
    if len(found.waste) > SHOWN:
        rest = found.waste[SHOWN:]
        table.add_row(
            f"… and {len(rest):,} more",
            "",
            f"{sum(w.files for w in rest):,}",
            size_in_words(sum(w.bytes for w in rest)),
        )
    yield table
    yield Text(f"Kept: {', '.join(found.kept) or 'nothing'}", "dim")
    total = f"{size_in_words(found.bytes)} ({found.bytes:,} bytes) in {sum(w.files for w in found.waste):,} files"
    if deleted:
        yield Text(f"Removed {total}.")
        return
    how = "--yes --force, if you are sure of it," if found.warnings else "--yes"
    yield Text(f"Would free {total}. Nothing was touched: add {how} to remove it.")
