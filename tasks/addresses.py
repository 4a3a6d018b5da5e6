"""Where a work folder keeps what a recipe made: each step's folder, also when the sources can no longer be read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import RecipeError, SourceError
from infra.home import whole_name
from infra.storage import Storage
from infra.store.commit import done_parts, load_own_manifest, load_step
from infra.store.manifest import StepManifest
from tasks.context import StepContext
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe, load_recipe
from tasks.status import last_recipe
from tasks.steps import BY_NAME, NAMES

_PART = re.compile(r"(?P<source>.+)-(?P<index>\d{6,})(?:\.r(?P<retry>[1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class PartName:
    """What a part's name says: ``emoji-000003.r1`` is what retry 1 added to item 3 of source ``emoji``."""

    source: str
    index: int
    retry: int = 0

    @property
    def base(self) -> str:
        """The name of the item's first part."""
        return f"{self.source}-{self.index:06d}"


def parse_part(part: str) -> PartName | None:
    """The pieces of the name of a part of samples; None for any other name."""
    found = _PART.fullmatch(part)
    return found and PartName(found["source"], int(found["index"]), int(found["retry"] or 0))


@dataclass(frozen=True)
class Addresses:
    """A work folder seen through one recipe."""

    root: str
    """The folder's whole name: a path or an ``s3://`` URL."""
    recipe: Recipe
    prints: dict[str, str]
    """Full fingerprints by step; a step that cannot be told is missing."""
    guessed: str = ""
    """Why the fingerprints were taken from the newest jobs; empty where they follow from recipe and sources."""
    _manifests: dict[str, StepManifest | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def workdir(self) -> Storage:
        return Storage(self.root)

    def folder(self, step: str) -> str:
        """Relative to the work folder: ``encode/0123456789ab``."""
        return folder_of(step, self.prints[step])

    def store(self, step: str) -> Storage:
        return self.workdir.sub(self.folder(step))

    def manifest(self, step: str) -> StepManifest | None:
        """The step's manifest with what retries added; None while it is not finished. Read once."""
        if step not in self._manifests:
            self._manifests[step] = load_step(self.store(step)) if step in self.prints else None
        return self._manifests[step]

    def context(self, step: str) -> StepContext:
        """What the step's own code is given, without hashing the sources again."""
        return StepContext(self.recipe, self.root, step, prints=self.prints)

    def steps(self, wanted: str | None, among: Sequence[str] = NAMES) -> tuple[str, ...]:
        """The steps to look into: all whose address is known, or the one wanted; RecipeError for another name."""
        if wanted is not None and wanted not in among:
            raise RecipeError(f"--step {wanted}: no such step here; the steps are {', '.join(among)}")
        return tuple(s for s in among if s in self.prints and wanted in (None, s))

    def sources(self, wanted: str | None) -> tuple[str, ...]:
        """The recipe's sources, or the one wanted; RecipeError for another name."""
        names = tuple(s.name for s in self.recipe.sources)
        if wanted is not None and wanted not in names:
            raise RecipeError(f"--source {wanted}: no such source; the recipe's are {', '.join(names)}")
        return names if wanted is None else (wanted,)


def addresses_of(workdir: str | Path, recipe_name: str | None = None, settings: Sequence[str] = ()) -> Addresses:
    """The folder under its last recipe, or under another one.

    Where a source of the last recipe can no longer be read, or is another one by now, its old identity is unknown; then
    the newest jobs, and what their manifests say they were made from, give the addresses. For another recipe a source
    that cannot be read is a SourceError.

    Raises:
        StoreError: No run was made in the folder.
    """
    root = whole_name(str(workdir))
    store = Storage(root)
    last = last_recipe(root)
    if recipe_name is not None or settings:
        recipe = last_recipe(root, settings) if recipe_name is None else load_recipe(recipe_name, settings)
        return Addresses(root, recipe, fingerprints(recipe, store))
    try:
        prints = fingerprints(last, store)
    except SourceError as e:
        return Addresses(root, last, _newest(store), str(e))
    scan = store.sub(folder_of("scan", prints["scan"]))
    if load_own_manifest(scan, 0) is None and not done_parts(scan) and (newest := _newest(store)):
        return Addresses(root, last, newest, "the sources, or the recipe, changed after the newest run in this folder")
    return Addresses(root, last, prints)


def _newest(store: Storage) -> dict[str, str]:
    from tasks.artifacts import made_from  # brings torch along

    found: dict[str, str] = {}
    records = [json.loads(store.get(f.name)) for f in store.find("runs/jobs") if f.name.endswith("/record.json")]
    for record in sorted(records, key=lambda r: float(r["started"]), reverse=True):
        for step, fingerprint in made_from(store, record["step"], record["fingerprint"]).items():
            found.setdefault(step, fingerprint)
    return {step: found[step] for step in BY_NAME if step in found}
