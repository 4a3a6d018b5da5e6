"""``calumma verify --repair``, and what verify says to a person: what is damaged and what to do about it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from infra.errors import StoreError
from infra.home import local_side
from infra.lock import locked
from infra.storage import Storage
from infra.store.commit import (
    load_own_manifest,
    load_part,
    own_retries,
    part_manifest_name,
    retry_of,
    step_manifest_name,
)
from infra.store.manifest import StepManifest
from infra.words import size_in_words
from tasks.addresses import Addresses
from tasks.retry import is_transient
from tasks.scan.items import listed_retries
from tasks.steps import STEPS
from tasks.verify import TRAINED, Damage, Verdict

SHOWN = 100


RETRY_LISTING = re.compile(r"items\.r([1-9][0-9]*)\.jsonl")
RUN, RETRY, AGAIN = "calumma run", "calumma retry", "calumma verify --repair once more"


@dataclass(frozen=True, slots=True)
class Repair:
    """What was removed of one step, so that it is made again."""

    step: str
    parts: tuple[str, ...]
    manifests: int
    """Step manifests removed: the step's own, and those of its retries."""
    files: tuple[str, ...]
    """Damaged files of the step as a whole that were removed."""
    later: tuple[str, ...]
    """Finished steps that were made from it."""
    then: tuple[str, ...]
    """The commands that make it again, in order."""


@dataclass(frozen=True, slots=True)
class _Removal:
    """What has to go of one step."""

    manifests: tuple[str, ...]
    parts: tuple[str, ...]
    files: tuple[str, ...]
    then: tuple[str, ...]


def repair(addresses: Addresses, damage: list[Damage]) -> list[Repair]:
    """Removes what keeps damaged parts from being made again: their manifests, the step's, and damaged step files.

    Steps that are trained are left alone, and so is what :func:`by_hand` names. ResourceError while a run holds the
    folder's lock.
    """
    done: list[Repair] = []
    with locked(local_side(addresses.root)):
        for step in dict.fromkeys(d.step for d in damage if d.step not in TRAINED):
            store, going = addresses.store(step), _removal(addresses, step, damage)
            for name in going.manifests:
                store.delete(name)  # first: a step without one of its parts must not count as done
            for part in going.parts:
                store.delete(part_manifest_name(part))
            for name in going.files:  # else the next run would take the file as it is, and sign it
                store.delete(name)
            later = tuple(_later(addresses, step))
            done.append(Repair(step, going.parts, len(going.manifests), going.files, later, going.then))
    return done


def by_hand(addresses: Addresses, damage: list[Damage]) -> list[Damage]:
    """What no run makes again: what is trained, and the list of a retry that others followed.

    A later retry was listed from what the earlier ones left, so that only the last list can be made anew.
    """
    listed = max(listed_retries(addresses.store("scan")), default=0)
    return [
        d
        for d in damage
        if d.step in TRAINED
        or (d.step == "scan" and (found := RETRY_LISTING.fullmatch(d.file)) and int(found[1]) < listed)
    ]


def _removal(addresses: Addresses, step: str, damage: list[Damage]) -> _Removal:
    store, lost = addresses.store(step), by_hand(addresses, damage)
    own, committed = [d for d in damage if d.step == step and d not in lost], _own_manifests(store)
    parts = dict.fromkeys(d.part for d in own if d.part)
    for d in own:  # some part's manifest changed and none of its files: nothing says which one it was
        if d.what == "digest" and not parts and (changed := committed[_retry(d.file)]) is not None:
            parts |= dict.fromkeys(changed.parts)
    retries = [retry for retry, m in committed.items() if any(_concerns(d, retry, m) for d in own)]
    then = [*([RUN] if 0 in retries else []), *([RETRY] if any(retries) else [])]
    if step != "scan" and 0 in retries and any(retries):
        # Without its manifest, what a retry added would be made along with the step itself, and the store be another
        # one. So the step first, and then what the retry added to it.
        parts = {p: None for p in parts if not any(m and p in m.parts for k, m in committed.items() if k)}
        unreadable = [k for k in retries if k and committed[k] is None]  # they keep every command from beginning
        retries, then = [0, *unreadable], [RUN, AGAIN]
    if own and not then:  # parts of what is not finished
        then = [RETRY if 0 in committed and any(map(retry_of, parts)) else RUN]
    names = [step_manifest_name(retry) for retry in retries]
    step_files = {entry.name for k in retries if (m := committed[k]) is not None for entry in m.files}
    files = dict.fromkeys(d.file for d in own if not d.part and d.file in step_files)
    return _Removal(tuple(names), tuple(parts), tuple(files), tuple(then))


def _own_manifests(store: Storage) -> dict[int, StepManifest | None]:
    """The manifests of a step (0) and of its retries; None for one that cannot be read."""
    found: dict[int, StepManifest | None] = {}
    for retry in (0, *own_retries(store)):
        if store.exists(step_manifest_name(retry)):
            try:
                found[retry] = load_own_manifest(store, retry)
            except StoreError:
                found[retry] = None
    return found


def _retry(manifest: str) -> int:
    """The retry whose manifest has this name."""
    return int(manifest.split(".")[1][1:]) if manifest != step_manifest_name() else 0


def _concerns(damage: Damage, retry: int, manifest: StepManifest | None) -> bool:
    """Whether a step's manifest must go for what is damaged to be made again."""
    if manifest is None or damage.file == step_manifest_name(retry):
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
    read = f"{verdict.parts:,} parts and {verdict.files:,} files, {size_in_words(verdict.bytes)}"
    read += f", of {', '.join(verdict.steps)}"
    if verdict.leftovers:
        yield Text(
            f"{len(verdict.leftovers):,} files that no manifest names, left by a killed run; they do no harm: "
            f"{verdict.leftovers[0]}{' …' if len(verdict.leftovers) > 1 else ''}. "
            f"Remove them: calumma clean {shlex.quote(addresses.root)} --yes",
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
    if lost := [d for d in verdict.damage if d.what == "missing" and d.part and d.file == part_manifest_name(d.part)]:
        names = ", ".join(f"{d.step} {d.part}" for d in lost[:5]) + (" …" if len(lost) > 5 else "")
        yield Text(
            f"{names}: the part's manifest is missing, which a finished step lists. Its files may be there; without "
            "the manifest nothing says what they should hold.",
            "yellow",
        )
    steps = dict.fromkeys(d.step for d in verdict.damage)
    for step in (s for s in steps if s in TRAINED):
        later = ", ".join(_later(addresses, step)) or "nothing yet"
        yield Text(
            f"{step} is trained: made anew it could differ, and what follows ({later}) was made with these bytes. "
            f"Put the file back from a copy; or delete {addresses.folder(step)}/manifest.json, run again, and what "
            "follows after it.",
            "yellow",
        )
    for d in by_hand(addresses, verdict.damage):
        if d.step not in TRAINED:
            yield Text(
                f"{d.file} lists what a retry read again, and later retries followed it: it is not made anew. "
                f"Put it back from a copy into {addresses.folder(d.step)}.",
                "yellow",
            )
    if parts := list(_may_differ(addresses, verdict.damage)):
        yield Text(
            f"{', '.join(parts[:5])}{' …' if len(parts) > 5 else ''}: with rows in quarantine whose fault may have "
            "passed. Made again with them, it holds more than what follows was made from; then calumma ledger is open, "
            "and the damaged file has to be put back from a copy.",
            "yellow",
        )
    if then := _commands(_removal(addresses, s, verdict.damage).then for s in steps if s not in TRAINED):
        yield Text(f"Have the damaged parts made again: calumma verify --repair, then {then}.", "yellow")


def _may_differ(addresses: Addresses, damage: list[Damage]) -> Iterator[str]:
    """Damaged parts that may hold more when they are made again, since some of their rows could not be fetched."""
    for step, part in dict.fromkeys((d.step, d.part) for d in damage if d.step in ("scan", "encode") and d.part):
        with suppress(StoreError):  # nothing says what such a part held
            if any(map(is_transient, load_part(addresses.store(step), part).rows.quarantined)):
                yield f"{step} {part}"


def _commands(wanted: Iterable[tuple[str, ...]]) -> str:
    """What to call after a repair, in order; where a retry follows, training does not begin before it."""
    found = {command for commands in wanted for command in commands}
    if RETRY not in found:
        return ", then ".join(c for c in (RUN, AGAIN) if c in found)
    return ", then ".join(
        [*([f"{RUN} --to tokenize"] if RUN in found else []), *([AGAIN] if AGAIN in found else []), RETRY]
    )


def render_repair(done: list[Repair]) -> Iterator[RenderableType]:
    """What was removed, and what stays valid."""
    for one in done:
        names = ", ".join(one.parts[:5]) + (" …" if len(one.parts) > 5 else "")
        parts = f"the manifests of {len(one.parts):,} part{'' if len(one.parts) == 1 else 's'} ({names})"
        if not one.then:
            yield Text(f"{one.step}: nothing was removed.", "yellow")
            continue
        yield Text(
            f"{one.step}: removed {parts if one.parts else 'no part'} and {one.manifests} manifest"
            f"{'' if one.manifests == 1 else 's'} of the step{''.join(f', {name}' for name in one.files)}.",
            "green",
        )
        if one.later:
            verb = "stays" if len(one.later) == 1 else "stay"
            yield Text(
                f"  {', '.join(one.later)} {verb} valid: what is made again has the same bytes (same build, kind of "
                "device and threads). Check afterwards: calumma verify"
            )
    if then := _commands(one.then for one in done):
        yield Text(f"Just this is made again by: {then}.", "green")


def _cut(text: str) -> str:
    """A digest by its beginning; long messages by theirs."""
    most = 16 if re.fullmatch("[0-9a-f]{64}", text) else 300
    return text if len(text) <= most else text[:most] + "…"
