"""What a work folder holds: steps, ledger, checkpoints, and what a changed recipe would do again and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from infra.errors import ResourceError, StepFailed, StoreError
from infra.home import whole_name
from infra.storage import Storage
from infra.store.commit import done_parts, load_step
from infra.store.manifest import StepManifest
from tasks.fingerprint import fingerprint_of, folder_of, ingredients
from tasks.ledger_table import ledger_table
from tasks.recipe import Recipe, load_recipe, read_recipe
from tasks.steps import STEPS

INGREDIENTS = "ingredients.json"
"""In the work folder: what the last recipe's steps were made from when it was run, the sources' identity included."""


@dataclass(frozen=True)
class StepStatus:
    """One step under one recipe."""

    step: str
    folder: str
    manifest: StepManifest | None
    parts: int
    """Parts committed so far, where the step makes parts."""
    seconds: float | None
    """What its attempts took, all together."""
    changed: tuple[str, ...] = ()
    """Why its output differs from the last run's: recipe keys, sources' content, earlier steps."""


@dataclass(frozen=True)
class Status:
    """A work folder."""

    workdir: str
    recipe: Recipe
    steps: tuple[StepStatus, ...]
    checkpoints: tuple[str, ...] = field(default_factory=tuple)


def last_recipe(workdir: Path | str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe that was last run in a work folder, with changes; StoreError where there is none."""
    store = Storage(workdir)
    try:
        text = store.get("recipe.yaml")
    except (StoreError, OSError) as e:
        raise StoreError(
            f"{workdir}: no run was made in this folder (there is no readable recipe.yaml). "
            f"Make one: calumma run RECIPE --workdir {workdir}"
        ) from e
    return read_recipe(text, settings, store.url("recipe.yaml"), store.root)


def remember(recipe: Recipe, store: Storage, content: Mapping[str, Any]) -> None:
    """Keeps the recipe as the folder's last, and with it what its steps are made from; ``status`` compares with both.

    ``content`` are its :func:`~tasks.fingerprint.ingredients`. Nothing is written where nothing changed.
    """
    text = (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()
    for name, data in ((INGREDIENTS, text), ("recipe.yaml", recipe.to_yaml().encode())):
        if store.get_or_none(name) != data:
            store.put(name, data)


def status_of(workdir: Path | str, recipe_name: str | None = None, settings: Sequence[str] = ()) -> Status:
    """The folder's steps under its last recipe, or under another one, compared with the last."""
    store = Storage(whole_name(str(workdir)))
    last = last_recipe(store.root)
    recipe = last_recipe(store.root, settings) if recipe_name is None else load_recipe(recipe_name, settings)
    now = ingredients(recipe, store)
    kept = store.get_or_none(INGREDIENTS)
    before = ingredients(last, store) if kept is None else json.loads(kept)
    seconds = job_seconds(store)
    found = []
    for step in STEPS:
        fingerprint = fingerprint_of(now[step.name])
        name = folder_of(step.name, fingerprint)
        changed = differences(before[step.name], now[step.name])
        parts = len(done_parts(store.sub(name)))
        found.append(StepStatus(step.name, name, load_step(store.sub(name)), parts, seconds.get(fingerprint), changed))
    checkpoints = sorted(
        f"{s.folder}/checkpoints/{name}"
        for s in found
        for name in store.list(f"{s.folder}/checkpoints")
        if name.startswith("step-") and name.endswith((".json", ".pt"))  # manifests; the image tokenizer's files
    )
    return Status(store.root, recipe, tuple(found), tuple(checkpoints))


def job_seconds(workdir: Storage) -> dict[str, float]:
    """Seconds that the jobs of each fingerprint took, over all attempts that ended by themselves."""
    total: dict[str, float] = {}
    for data in workdir.get_many(f.name for f in workdir.find("runs/jobs") if f.name.endswith("/record.json")):
        record = json.loads(data)
        total[record["fingerprint"]] = total.get(record["fingerprint"], 0.0) + record["seconds"]
    return total


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> tuple[str, ...]:
    """The keys at which two steps' ingredients differ, dotted; input fingerprints as the step's name."""
    keys: list[str] = []
    for key in sorted({*before, *now}):
        a, b = before.get(key), now.get(key)
        if a == b:
            continue
        if key == "inputs" and isinstance(a, dict) and isinstance(b, dict):
            keys += [f"step {name}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
        elif isinstance(a, dict) and isinstance(b, dict):
            keys += differences(a, b, f"{prefix}{key}.")
        else:
            keys.append(f"{prefix}{key}")
    return tuple(keys)


def render(status: Status) -> RenderableType:
    """The status as tables for a terminal."""
    steps = Table(title=f"{status.recipe.name} in {status.workdir}", title_justify="left")
    for column in ("step", "state", "time", "where", "would be done again because of"):
        steps.add_column(column, overflow="fold")
    for s in status.steps:
        state = "[green]done[/]" if s.manifest else f"[yellow]{s.parts} parts[/]" if s.parts else "[dim]to do[/]"
        why = ", ".join(s.changed) if s.manifest is None else ""
        steps.add_row(s.step, state, f"{s.seconds:,.0f} s" if s.seconds is not None else "", s.folder, why)
    lines = ((s.step, name, rows) for s in status.steps if s.manifest for name, rows in s.manifest.rows.items())
    shown: list[RenderableType] = [steps, ledger_table(lines)]
    if status.checkpoints:
        shown.append("Checkpoints:\n" + "\n".join(f"  {c}" for c in status.checkpoints))
    report = next(s for s in status.steps if s.step == "report")
    if report.manifest:
        shown.append(f"Report: {status.workdir}/{report.folder}/report.html")
    return Group(*shown)


def copy_export(workdir: Path | str, out: Path) -> str:
    """Copies the finished export to a new folder; what was copied, in words.

    Raises:
        StepFailed: There is none yet.
        ResourceError: The folder exists, or cannot be written.
    """
    status = status_of(workdir)
    step = next(s for s in status.steps if s.step == "export")
    if step.manifest is None:
        raise StepFailed(f"{workdir}: step export is not finished. Run: calumma run RECIPE --workdir {workdir}")
    if out.exists():
        raise ResourceError(f"{out}: it exists already; name a new folder with --out")
    source = Storage(status.workdir).sub(f"{step.folder}/transformers")
    files = list(source.find())
    size = sum(f.size for f in files)
    Storage(out.absolute().parent).need(size, "the exported model")
    try:
        source.fetch((f.name for f in files), out)
    except OSError as e:
        raise ResourceError(f"{out}: could not be written ({e.strerror}); name another folder with --out") from e
    return f"{out}: {len(files)} files, {size / 1e6:,.1f} MB. Load it with transformers' from_pretrained."
