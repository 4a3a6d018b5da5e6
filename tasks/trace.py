"""``calumma trace``: from anything that a run made back to the file, row and licence that it came from.

A sample is found by its id, its key or its row in a part; a place in training by its position or by stage and sequence.
Tables are read part by part and only the columns that are looked at; nothing is kept but what was asked for.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

from infra.errors import StoreError
from infra.store.commit import PARTS, done_parts, part_manifest_name
from infra.store.plan import PackedStore
from tasks.addresses import Addresses, parse_part
from tasks.occurrences import (
    SequenceTrace,
    Use,
    packed_stores,
    sequence_at,
    trace_sequence,
    track,
    uses_of,
)
from tasks.scan.facts import storable
from tasks.scan.items import read_item
from tasks.scan.selected import first_row, work_items
from tasks.sources import open_source
from tasks.sources.base import RawSample, sample_id
from tasks.trace_steps import NOT_THERE, UNKNOWN, Stop, index_of, row_at, stops

READERS = 8
BEFORE_MIX = "Where it will be used in training is not known before mix is finished."
Progress = Any
"""A ``rich.progress.Progress``, or None."""


@dataclass(frozen=True)
class Generation:
    """One pass of the sample through the steps: the first, or a retry's."""

    part: str
    stops: tuple[Stop, ...]


@dataclass(frozen=True)
class SampleTrace:
    """A sample's way."""

    source: str
    sample_id: bytes
    key: str
    file: str
    row: int
    """In its file, from 1 or as its reader counts."""
    licence: str
    kind: str
    generations: tuple[Generation, ...]
    uses: tuple[Use, ...] = ()
    uses_unknown: str = ""
    """Why ``uses`` may not be all: ``mix`` is not finished, or a part's manifest is missing."""


def trace(addresses: Addresses, what: str, progress: Progress = None) -> list[SampleTrace] | SequenceTrace:
    """Finds what is asked for.

    Args:
        what: A sample id (32 hex digits), ``SOURCE:KEY`` or ``KEY``, ``PART#ROW`` (a row of the sample store, from 0);
            a position of pre-training, or ``STAGE:SEQUENCE``. Where a stage has a source's name, the sample comes
            first; ``stages/NAME:SEQUENCE`` is always the stage's.

    Raises:
        StoreError: There is no such thing, or a step that is needed is not there.
    """
    names = [s.name for s in addresses.recipe.sources]
    if re.fullmatch("[0-9a-f]{32}", what):
        wanted = dict.fromkeys(names, bytes.fromhex(what))
        return _samples(addresses, wanted, progress) or _nothing(addresses, what, wanted)
    if what.isdecimal():
        return trace_sequence(addresses, *sequence_at(addresses, int(what)), position=int(what))
    head, _, tail = what.rpartition("#")
    if (part := parse_part(head)) and part.source in names and tail.isdecimal():
        wanted = {part.source: _id_in_part(addresses, head, int(tail))}
        return _samples(addresses, wanted, progress, part.base) or _nothing(addresses, what, wanted)
    stage, _, tail = what.rpartition(":")
    packed = _packed_store(addresses, stage) if tail.isdecimal() else None
    if packed is not None and stage not in names:
        return trace_sequence(addresses, packed, int(tail))
    head, sign, key = what.partition(":")
    own = {head: key} if sign and head in names else dict.fromkeys(names, what)
    wanted = {name: sample_id(name, storable(key)) for name, key in own.items()}
    if found := _samples(addresses, wanted, progress):
        return found
    if packed is None or int(tail) >= packed.sequences:
        _nothing(addresses, what, wanted)
    return trace_sequence(addresses, packed, int(tail))


def raw_sample(addresses: Addresses, found: SampleTrace) -> RawSample:
    """The sample as its source has it now; SourceError or StoreError if it can no longer be read."""
    base = parse_part(found.generations[0].part)
    for item in work_items(addresses.context("scan")):
        if base is not None and item.part == base.base:
            source = open_source(addresses.recipe.source(item.source), addresses.recipe.folder)
            for raw in read_item(source, item):
                if isinstance(raw, RawSample) and storable(raw.key) == found.key:
                    return raw
    raise StoreError(f"source {found.source} has no sample {found.key!r} any more, or the row is no sample at all")


def _samples(
    addresses: Addresses, wanted: dict[str, bytes], progress: Progress, base: str | None = None
) -> list[SampleTrace]:
    """The samples with these ids, one a source at most."""
    parts = [p for p in _scanned(addresses, wanted) if base in (None, p)]
    store = addresses.store("scan") if parts else None
    left, found = dict(wanted), []

    def look(part: str) -> bool:
        name = parse_part(part)
        own = left.get(name.source) if name else None
        return own is not None and store is not None and index_of(store, part, own) is not None

    with ThreadPoolExecutor(READERS) as pool:
        for part, here in zip(parts, track(pool.map(look, parts), len(parts), "looking for it", progress), strict=True):
            if here and (name := parse_part(part)):
                found.append(_sample(addresses, part, name.source, left.pop(name.source), progress))
            if not left:
                pool.shutdown(cancel_futures=True)
                break
    return found


def _scanned(addresses: Addresses, sources: Collection[str]) -> list[str]:
    """The sources' scanned parts, without what retries added."""
    done = done_parts(addresses.store("scan")) if "scan" in addresses.prints else set()
    return sorted(p for p in done if (n := parse_part(p)) and not n.retry and n.source in sources)


def _nothing(addresses: Addresses, what: str, sources: Collection[str]) -> NoReturn:
    """StoreError: there is no such sample, nor such a sequence; and what could have been given."""
    parts = _scanned(addresses, sources)
    about = f"{what}: no such sample in {len(parts):,} scanned parts of {', '.join(sources)}"
    if re.fullmatch(r".+:\d+", what):
        if addresses.manifest("mix") is None:
            about += ", and no sequence either, since step mix is not finished"
        else:
            places = (f"{s.folder.removeprefix(f'{PARTS}/')} ({s.sequences:,})" for s in packed_stores(addresses))
            about += f", and no such sequence. They are given as stages/NAME:SEQUENCE, from 0, of {', '.join(places)}"
    if lost := sorted({*_listed(addresses, sources)} - {*parts}):
        about += (
            f". It may be in {', '.join(lost[:5])}{' …' if len(lost) > 5 else ''}: that cannot be told, since scan is "
            "finished and the manifests of these parts are missing. Check: calumma verify "
            f"{shlex.quote(addresses.root)}"
        )
    raise StoreError(
        f"{about}. Give a sample id (32 hex digits), SOURCE:KEY, PART#ROW, a position in training, or STAGE:SEQUENCE. "
        "While scan is under way, only what it has committed is known."
    )


def _listed(addresses: Addresses, sources: Collection[str]) -> list[str]:
    """The sources' parts that the finished scan lists, without what retries added."""
    manifest = addresses.manifest("scan")
    names = manifest.parts if manifest is not None else []
    return [p for p in names if (n := parse_part(p)) and not n.retry and n.source in sources]


def _sample(addresses: Addresses, part: str, source: str, wanted: bytes, progress: Progress) -> SampleTrace:
    later = sorted(
        (name.retry, p)
        for p in done_parts(addresses.store("scan"))
        if (name := parse_part(p)) and name.base == part and name.retry
    )
    generations = [Generation(p, tuple(stops(addresses, p, wanted))) for p in (part, *(p for _, p in later))]
    generations = [g for g in generations if any(s.index is not None or s.state != NOT_THERE for s in g.stops)]
    row = next(s.row for s in generations[0].stops if s.step == "scan")
    encoded = [s.row for g in generations for s in g.stops if s.step == "encode" and s.index is not None]
    offset = first_row(addresses.context("scan")).get(part, 1) - 1
    documents = [(g.part, s.index) for g in generations for s in g.stops if s.step == "tokenize"]
    planned = addresses.manifest("mix") is not None
    uses = [
        u for p, index in documents if index is not None and planned for u in uses_of(addresses, p, index, progress)
    ]
    config = addresses.recipe.source(source)
    return SampleTrace(
        source,
        wanted,
        row["key"],
        row["file"],
        encoded[-1]["row"] if encoded else row["row"] + offset,
        encoded[-1]["licence"] if encoded else config.licence,
        config.kind,
        tuple(generations),
        tuple(uses),
        _unknown_uses(addresses, part, generations) if planned else BEFORE_MIX,
    )


def _unknown_uses(addresses: Addresses, part: str, generations: Collection[Generation]) -> str:
    """Which missing manifest may hide that a sample was used; empty where none does."""
    tokenized = [(g.part, s) for g in generations for s in g.stops if s.step == "tokenize"]
    files = [("tokenize", name) for name, stop in tokenized if stop.state == UNKNOWN]
    if not files and all(stop.index is None for _, stop in tokenized):  # a retry may have rescued it
        done, manifest = done_parts(addresses.store("scan")), addresses.manifest("scan")
        listed = manifest.parts if manifest is not None else []
        files = [("scan", p) for p in listed if p not in done and (n := parse_part(p)) and n.base == part]
    names = ", ".join(f"{addresses.folder(step)}/{part_manifest_name(name)}" for step, name in files)
    return f"Whether it is used in training (or elsewhere, too) cannot be told, for want of {names}." if names else ""


def _id_in_part(addresses: Addresses, part: str, index: int) -> bytes:
    """The id of a row of the sample store; of the scan's table where the store does not have the part."""
    for step in ("encode", "scan"):
        if step in addresses.prints and (store := addresses.store(step)).exists(part_manifest_name(part)):
            found: bytes = row_at(store, part, index)["sample_id"]
            return found
    raise StoreError(f"{part}: no such part in {addresses.root}; calumma ledger --parts lists them")


def _packed_store(addresses: Addresses, name: str) -> PackedStore | None:
    """The packed store that a name means: ``stage-1``, ``epoch-0``, ``held-out/shapes``."""
    if addresses.manifest("mix") is None:
        return None
    return next((s for s in packed_stores(addresses) if name in (s.name, s.folder.removeprefix(f"{PARTS}/"))), None)
