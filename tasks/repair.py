"""``calumma verify --repair``, and what verify says to a person: what is damaged and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from infra.errors import StoreError
from infra.home import local_side
from infra.lock import locked
from infra.storage import Storage
from infra.store.commit import load_own_manifest, part_manifest_name, step_manifest_name
from infra.store.manifest import StepManifest
from tasks.addresses import Addresses
from tasks.report.html import size
from tasks.steps import STEPS
from tasks.verify import TRAINED, Damage, Verdict

SHOWN = 100


@dataclass(frozen=True, slots=True)
class Repair:
    """What was removed of one step, so that the next run makes it again."""

    step: str
    parts: tuple[str, ...]
    manifests: int
    """Step manifests removed: the step's own, and those of its retries."""
    later: tuple[str, ...]
    """Finished steps that were made from it."""


def repair(addresses: Addresses, damage: list[Damage]) -> list[Repair]:
    """Removes the manifests of damaged parts and of their steps; steps that are trained are left alone.

    ResourceError while a run holds the folder's lock.
    """
    done: list[Repair] = []
    with locked(local_side(addresses.root)):
        for step in dict.fromkeys(d.step for d in damage if d.step not in TRAINED):
            store, own = addresses.store(step), [d for d in damage if d.step == step]
            committed = _own_manifests(store)
            parts = dict.fromkeys(d.part for d in own if d.part)
            for d in own:  # some part's manifest changed and none of its files: nothing says which one it was
                if d.what == "digest" and not parts and (changed := committed[d.file]) is not None:
                    parts |= dict.fromkeys(changed.parts)
            manifests = [name for name, m in committed.items() if any(_concerns(d, name, m) for d in own)]
            for name in manifests:
                store.delete(name)  # first: a step without one of its parts must not count as done
            for part in parts:
                store.delete(part_manifest_name(part))
            done.append(Repair(step, tuple(parts), len(manifests), tuple(_later(addresses, step))))
    return done


def _own_manifests(store: Storage) -> dict[str, StepManifest | None]:
    """The manifests of a step and of its retries by file name; None for one that cannot be read."""
    found: dict[str, StepManifest | None] = {}
    while store.exists(name := step_manifest_name(len(found))):
        try:
            found[name] = load_own_manifest(store, len(found))
        except StoreError:
            found[name] = None
    return found


def _concerns(damage: Damage, name: str, manifest: StepManifest | None) -> bool:
    """Whether a step's manifest must go for what is damaged to be made again."""
    if manifest is None or damage.file == name:
        return True
    return damage.part in manifest.parts or damage.file in [entry.name for entry in manifest.files]


def _later(addresses: Addresses, step: str) -> Iterator[str]:
    """The finished steps that read a step, at any distance."""
    reached = {step}
    for later in STEPS:
        if reached & set(later.inputs):
            reached.add(later.name)
            if later.name in addresses.prints and load_own_manifest(addresses.store(later.name), 0) is not None:
                yield later.name


def render(addresses: Addresses, verdict: Verdict) -> Iterator[RenderableType]:
    """What was read, and each damage with what to do."""
    read = f"{verdict.parts:,} parts and {verdict.files:,} files, {size(verdict.bytes)}, of {', '.join(verdict.steps)}"
    if verdict.leftovers:
        yield Text(
            f"{len(verdict.leftovers):,} files that no manifest names, left by a killed run; they do no harm: "
            f"{verdict.leftovers[0]}{' …' if len(verdict.leftovers) > 1 else ''}. "
            f"Remove them: calumma clean {addresses.root} --yes",
            "dim",
        )
    if not verdict.damage:
        yield Text(f"Whole: {read}.", "green")
        return
    table = Table(title=f"{len(verdict.damage):,} damaged, among {read}", title_justify="left")
    for column in ("file", "what", "expected", "found"):
        table.add_column(column, overflow="fold")
    for d in verdict.damage[:SHOWN]:
        table.add_row(Text(f"{addresses.folder(d.step)}/{d.file}"), d.what, Text(_cut(d.expected)), Text(_cut(d.found)))
    yield table
    if len(verdict.damage) > SHOWN:
        yield Text(f"… and {len(verdict.damage) - SHOWN:,} more")
    steps = dict.fromkeys(d.step for d in verdict.damage)
    for step in (s for s in steps if s in TRAINED):
        later = ", ".join(_later(addresses, step)) or "nothing yet"
        yield Text(
            f"{step} is trained: made anew it could differ, and what follows ({later}) was made with these bytes. "
            f"Put the file back from a copy; or delete {addresses.folder(step)}/manifest.json, run again, and what "
            "follows after it.",
            "yellow",
        )
    if any(s not in TRAINED for s in steps):
        yield Text("Have the damaged parts made again: calumma verify --repair, then calumma run.", "yellow")


def render_repair(done: list[Repair]) -> Iterator[RenderableType]:
    """What was removed, and what stays valid."""
    for one in done:
        names = ", ".join(one.parts[:5]) + (" …" if len(one.parts) > 5 else "")
        parts = f"the manifests of {len(one.parts):,} part{'' if len(one.parts) == 1 else 's'} ({names})"
        yield Text(
            f"{one.step}: removed {parts if one.parts else 'no part'} and {one.manifests} manifest"
            f"{'' if one.manifests == 1 else 's'} of the step. The next run makes just these again.",
            "green",
        )
        if one.later:
            verb = "stays" if len(one.later) == 1 else "stay"
            yield Text(
                f"  {', '.join(one.later)} {verb} valid: what is made again has the same bytes (same build, kind of "
                "device and threads). Check afterwards: calumma verify"
            )


def _cut(text: str) -> str:
    """A digest by its beginning; long messages by theirs."""
    most = 16 if re.fullmatch("[0-9a-f]{64}", text) else 300
    return text if len(text) <= most else text[:most] + "…"
