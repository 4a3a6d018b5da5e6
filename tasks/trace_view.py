"""What ``calumma trace`` shows: a sample's way, a sequence's documents, and the raw sample where it can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from infra.errors import CalummaError
from tasks.addresses import Addresses
from tasks.occurrences import SequenceTrace, Use
from tasks.report.html import size
from tasks.sources.base import RawSample
from tasks.trace import NOT_THERE, Generation, SampleTrace, Stop, raw_sample

SHOWN_USES = 20
TEXT_CHARACTERS = 600
STYLES = {
    "kept": "green",
    "quarantined": "red",
    "filtered": "yellow",
    "dropped": "yellow",
    "left out": "yellow",
    NOT_THERE: "dim",
}


def render(
    addresses: Addresses, found: list[SampleTrace] | SequenceTrace, out: Path | None
) -> Iterator[RenderableType]:
    """Everything that was found; original pictures are written to the folder ``out``."""
    if addresses.guessed:
        yield Text(
            f"The sources cannot be read ({addresses.guessed}): the newest jobs' folders are searched.", "yellow"
        )
    if isinstance(found, SequenceTrace):
        yield from _sequence(found)
        return
    for sample in found:
        yield from _sample(sample)
        yield from _raw(addresses, sample, out)


def _sample(sample: SampleTrace) -> Iterator[RenderableType]:
    yield _facts(
        {
            "sample": sample.sample_id.hex(),
            "source": f"{sample.source} ({sample.kind})",
            "key": sample.key,
            "file": sample.file,
            "row": f"{sample.row:,}",
            "licence": sample.licence or "not stated",
        }
    )
    table = Table(title="Its way", title_justify="left")
    for column in ("part", "step", "state", "row there", "why"):
        table.add_column(column, justify="right" if column == "row there" else "left", overflow="fold")
    for generation in sample.generations:
        for number, stop in enumerate(_as_far_as_it_came(generation)):
            why = Text(": ".join(w for w in (stop.reason, stop.message) if w) or _measured(stop))
            where = "" if stop.index is None else f"{stop.index:,}"
            state = Text(stop.state, STYLES.get(stop.state, ""))
            table.add_row(generation.part if number == 0 else "", stop.step, state, where, why)
    yield table
    ways = [s.row["images"] for g in sample.generations for s in g.stops if s.row.get("images")]
    images: list[dict[str, Any]] = ways[-1] if ways else []
    if images:
        yield _images(images)
    if sample.uses:
        yield _uses(sample.uses)
    elif not sample.uses_known:
        yield Text("Where it will be used in training is not known before mix is finished.", "dim")
    else:
        yield Text("No packed sequence holds it.", "dim")


def _as_far_as_it_came(generation: Generation) -> tuple[Stop, ...]:
    """Without the steps behind the one that kept it back."""
    ends = [n for n, stop in enumerate(generation.stops) if stop.state not in ("kept", NOT_THERE)]
    return generation.stops[: ends[0] + 1] if ends else generation.stops


def _measured(stop: Stop) -> str:
    """What a step found out about a sample that it kept."""
    row, words = stop.row, []
    if stop.step == "scan" and row:
        words += ["held out"] if row["held_out"] else []
        words += [f"{row['text_bytes']:,} bytes of text"] if row["text_bytes"] else []
        words += [f"language {row['language']}"] if row.get("language") else []
        words += [f"without pictures {', '.join(map(str, row['dropped']))}"] if row.get("dropped") else []
        words += [f"{score['name']} {score['value']:.3g}" for score in row.get("scores", [])]
    elif stop.step == "tokenize" and row:
        words.append(" or ".join(f"{n:,}" for n in dict.fromkeys(row["lengths"])) + " tokens")
    return ", ".join(words)


def _images(images: list[dict[str, Any]]) -> Table:
    table = Table(title="Pictures", title_justify="left")
    for column in ("size", "sha256", "perceptual hash", "faces", "URL"):
        table.add_column(column, overflow="fold")
    for image in images:
        table.add_row(
            f"{image['width']}×{image['height']}",
            image["sha256"].hex(),
            f"{image['phash']:016x}",
            str(len(image.get("faces", []))),
            Text(image.get("url", "")),
        )
    return table


def _uses(uses: tuple[Use, ...]) -> Table:
    table = Table(title=f"{len(uses):,} stretches in packed sequences", title_justify="left")
    for column in ("where", "sequence", "position", "occurrence", "from", "tokens"):
        table.add_column(column, justify="left" if column == "where" else "right")
    for use in uses[:SHOWN_USES]:
        table.add_row(use.store, f"{use.sequence:,}", _position(use.position), *_stretch(use))
    if len(uses) > SHOWN_USES:
        table.add_row(f"… and {len(uses) - SHOWN_USES:,} more", *[""] * 5)
    return table


def _stretch(use: Use) -> tuple[str, str, str]:
    piece = f" (its token {use.first_token:,} on)" if use.first_token else ""
    return str(use.occurrence), f"{use.offset:,}", f"{use.length:,}{piece}"


def _position(position: int | None) -> str:
    return "no training" if position is None else f"{position:,}"


def _sequence(found: SequenceTrace) -> Iterator[RenderableType]:
    used = sum(d.use.length for d in found.documents)
    place = f"position {found.position:,}" if found.position is not None else "not trained on"
    yield Text(
        f"{found.store}, sequence {found.sequence:,} of {found.sequences:,} ({place}): {len(found.documents):,} "
        f"documents, {used:,} of {found.length:,} tokens",
        "bold",
    )
    table = Table(show_lines=False)
    for column in ("from", "tokens", "source", "key", "file", "row", "licence", "use", "sample"):
        table.add_column(column, justify="right" if column in ("from", "row", "use") else "left", overflow="fold")
    for d in found.documents:
        occurrence, offset, tokens = _stretch(d.use)
        words = (d.source, d.key, d.file, f"{d.row:,}", d.licence)
        table.add_row(offset, tokens, *map(Text, words), occurrence, d.sample_id.hex())
    yield table


def _raw(addresses: Addresses, sample: SampleTrace, out: Path | None) -> Iterator[RenderableType]:
    try:
        raw = raw_sample(addresses, sample)
    except (CalummaError, OSError) as e:
        yield Text(f"The raw sample cannot be shown: {e}", "yellow")
        return
    text = " ⏎ ".join(raw.captions) or " ".join(_words(raw))
    if text:
        yield Text(text[:TEXT_CHARACTERS] + (f"… ({len(text):,} characters)" if len(text) > TEXT_CHARACTERS else ""))
    for number, image in enumerate(raw.images):
        if image.data is None:
            yield Text(f"picture {number + 1}: {image.name}: {image.error}", "yellow")
        elif out is None:
            yield Text(f"picture {number + 1}: {image.name}, {size(len(image.data))} (save it with --out FOLDER)")
        else:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{sample.sample_id.hex()}-{number + 1}{_suffix(image.name)}"
            path.write_bytes(image.data)
            yield Text(f"picture {number + 1}: {image.name}, {size(len(image.data))}, saved as {path}")


def _words(raw: RawSample) -> Iterator[str]:
    role = ""
    for segment in raw.segments:
        if segment.role != role:
            role = segment.role
            yield f"\n{role}:"
        yield f"[picture {segment.image + 1}]" if segment.image is not None else segment.text or ""


def _suffix(name: str) -> str:
    """The name's ending, if it is one that files of pictures have: names come from the data."""
    found = PurePath(name).suffix.lower()
    return found if re.fullmatch(r"\.[a-z0-9]{1,5}", found) else ".bin"


def _facts(facts: dict[str, str]) -> Table:
    table = Table(show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for key, value in facts.items():
        table.add_row(key, Text(value))
    return table
