"""A few samples of every source, as they were read: what the run was made from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc
from PIL import Image

from infra.errors import CalummaError
from infra.store.commit import PARTS
from infra.store.samples import SAMPLES
from infra.store.tables import read_table
from tasks.encode.decode import ImageError, open_image
from tasks.report.html import uri
from tasks.report.read import Run
from tasks.scan.selected import selected, work_items
from tasks.sources.base import RawSample, Segment, WorkItem

LOOKED_AT = 400
"""Samples of a work item that the shown ones are spread over."""
SHOWN = {"pairs": 12, "text": 2, "interleaved": 2, "messages": 6}
PARTS_READ = 64
"""Parts in which a conversation of every category is looked for."""
TEXT_CHARACTERS = 700
THUMBNAIL = 192
"""Longest side of a picture, pixels."""


def source_samples(run: Run) -> list[dict[str, Any]]:
    """For each source: name, kind, licence, counts, and samples in pieces of text and picture.

    A source that can no longer be read, because its files are gone, has a ``missing`` message in place of samples.
    """
    facts = run.facts("scan").get("sources", {})
    items = work_items(run.context)
    found = []
    for config in run.recipe.sources:
        entry: dict[str, Any] = {"name": config.name, "kind": config.kind, "licence": config.licence, "samples": []}
        entry |= {"rows": run.manifests["select"].rows.get(config.name), **facts.get(config.name, {})}
        own = [item for item in items if item.source == config.name]
        try:
            choose = _one_a_category if config.kind == "messages" else _spread
            entry["samples"] = [_show(run, s) for s in choose(run, own, SHOWN[config.kind])]
        except (CalummaError, OSError) as e:
            entry["missing"] = str(e)
        found.append(entry)
    return found


def _spread(run: Run, items: list[WorkItem], count: int) -> Iterator[RawSample]:
    """``count`` samples at equal distances over the beginning of the source's middle work item."""
    item = items[len(items) // 2]
    looked_at = [raw for raw, _ in itertools.islice(selected(run.context, item), LOOKED_AT)]
    step = max(1, len(looked_at) // count)
    yield from looked_at[step // 2 :: step][:count]


def _one_a_category(run: Run, items: list[WorkItem], count: int) -> Iterator[RawSample]:
    """A conversation of each category, found in the sample store and then read again from its source."""
    store = run.context.store("encode")
    wanted: dict[str, tuple[WorkItem, bytes]] = {}
    for item in items[:PARTS_READ]:
        name = f"{PARTS}/{item.part}.parquet"
        table = read_table(store.get(name), SAMPLES, store.url(name), ["sample_id", "category"])
        # The middle one of a part, because the first of a kind is often a special case.
        for category in dict.fromkeys(table["category"].to_pylist()):
            ids = table.filter(pc.equal(table["category"], category))["sample_id"].to_pylist()
            wanted.setdefault(category, (item, ids[len(ids) // 2]))
    for item, sample_id in list(wanted.values())[:count]:
        yield from (raw for raw, row in selected(run.context, item) if row.sample_id == sample_id)


def _show(run: Run, raw: RawSample) -> dict[str, Any]:
    pictures = [_thumbnail(run, image.data) for image in raw.images]
    if raw.captions:
        shown = [c for i, c in enumerate(raw.captions) if c not in raw.captions[:i]]
        return {"picture": pictures[0] if pictures else None, "captions": shown[:4], "more": len(shown[4:])}
    return {"category": raw.category, "turns": list(_turns(raw.segments, pictures))}


def _turns(segments: tuple[Segment, ...], pictures: list[str | None]) -> Iterator[dict[str, Any]]:
    """Neighbouring segments of one role, as pieces; long texts are cut."""
    left = TEXT_CHARACTERS
    for role, group in itertools.groupby(segments, key=lambda s: s.role):
        pieces: list[dict[str, Any]] = []
        for segment in group:
            if segment.image is not None and segment.image < len(pictures) and left > 0:
                pieces.append({"picture": pictures[segment.image]})
                left -= 20
            elif segment.text and left > 0:
                pieces.append({"text": segment.text[:left] + ("…" if len(segment.text) > left else "")})
                left -= len(segment.text)
        if pieces:
            yield {"role": role, "pieces": pieces}


def _thumbnail(run: Run, data: bytes | None) -> str | None:
    try:
        picture = open_image(data or b"", run.recipe.scan.max_pixels)
    except ImageError:
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return uri(picture)
