"""What ``calumma trace`` shows: a sample's way, a sequence's documents, and the raw sample where it can be read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.errors import CalummaError
from infra.words import size_in_words
from tasks.addresses import Addresses
from tasks.occurrences import SequenceTrace, Use
from tasks.scan.facts import storable
from tasks.sources.base import RawSample
from tasks.trace import BEFORE_MIX, Generation, SampleTrace, raw_sample
from tasks.trace_steps import NOT_THERE, UNKNOWN, Stop

SHOWN_USES = 20
TEXT_CHARACTERS = 600
STYLES = {
    "kept": "green",
    "quarantined": "red",
    "filtered": "yellow",
    "dropped": "yellow",
    "left out": "yellow",
    NOT_THERE: "dim",
    UNKNOWN: "yellow",
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
        yield from _sample(addresses, sample)
        yield from _raw(addresses, sample, out)


def _sample(addresses: Addresses, sample: SampleTrace) -> Iterator[RenderableType]:
    facts = {
        "sample": sample.sample_id.hex(),
        "source": f"{sample.source} ({sample.kind})",
        "key": sample.key,
        "file": sample.file,
        "row": f"{sample.row:,}",
        "licence": sample.licence or "not stated",
    }
    yield from (_line(f" {name:<8} ", value) for name, value in facts.items())
    for generation in sample.generations:
        yield _line("Its way through part ", generation.part)
        table = Table()
        for column in ("step", "state", "row there"):
            table.add_column(column, justify="right" if column == "row there" else "left", no_wrap=True)
        table.add_column("why", overflow="fold")
        for stop in _as_far_as_it_came(generation):
            why = Text(storable(": ".join(w for w in (stop.reason, stop.message) if w) or _measured(stop)))
            where = "" if stop.index is None else f"{stop.index:,}"
            table.add_row(stop.step, Text(stop.state, STYLES.get(stop.state, "")), where, why)
        yield table
    ways = [s.row["images"] for g in sample.generations for s in g.stops if s.row.get("images")]
    for number, image in enumerate(ways[-1] if ways else []):
        yield from _image(number, image)
    if sample.uses:
        yield _uses(sample.uses)
    if sample.uses_unknown:
        yield Text(sample.uses_unknown, "yellow" if sample.uses_unknown != BEFORE_MIX else "dim")
        if sample.uses_unknown != BEFORE_MIX:
            yield _line("Check: ", f"calumma verify {shlex.quote(addresses.root)}")
    elif not sample.uses:
        yield Text("No packed sequence holds it.", "dim")


def _as_far_as_it_came(generation: Generation) -> tuple[Stop, ...]:
    """Without the steps behind the one that kept it back."""
    ends = [n for n, stop in enumerate(generation.stops) if stop.state not in ("kept", NOT_THERE, UNKNOWN)]
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


def _image(number: int, image: dict[str, Any]) -> Iterator[RenderableType]:
    faces = len(image.get("faces", []))
    size, some = f"{image['width']}×{image['height']}", f"{faces} face{'' if faces == 1 else 's'}"
    yield Text(f"picture {number + 1}: {size}, {some}, perceptual hash {image['phash']:016x}")
    yield _line("  sha256 ", image["sha256"].hex())
    if image.get("url"):
        yield _line("  URL    ", image["url"])


def _uses(uses: tuple[Use, ...]) -> Table:
    table = Table(title=f"{len(uses):,} stretches in packed sequences", title_justify="left")
    for column in ("where", "sequence", "position", "occurrence", "from", "tokens"):
        table.add_column(column, justify="left" if column == "where" else "right", overflow="fold")
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
    for d in found.documents:
        occurrence, offset, tokens = _stretch(d.use)
        yield Text(
            f"from {offset}, {tokens} tokens, use {occurrence}, of {d.source}, {d.licence or 'licence not stated'}"
        )
        yield _line("  sample ", d.sample_id.hex())
        yield _line("  key    ", d.key)
        yield _line("  file   ", d.file, f", row {d.row:,}")


def _raw(addresses: Addresses, sample: SampleTrace, out: Path | None) -> Iterator[RenderableType]:
    try:
        raw = raw_sample(addresses, sample)
    except (CalummaError, OSError) as e:
        yield Text(f"The raw sample cannot be shown: {storable(str(e))}", "yellow")
        return
    text = storable(" ⏎ ".join(raw.captions) or " ".join(_words(raw)))
    if text:
        yield Text(text[:TEXT_CHARACTERS] + (f"… ({len(text):,} characters)" if len(text) > TEXT_CHARACTERS else ""))
    for number, image in enumerate(raw.images):
        name = storable(image.name)
        if image.data is None:
            yield Text(f"picture {number + 1}: {name}: {storable(image.error)}", "yellow")
        elif out is None:
            yield Text(f"picture {number + 1}: {name}, {size_in_words(len(image.data))} (save it with --out FOLDER)")
        else:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{sample.sample_id.hex()}-{number + 1}{_suffix(image.name)}"
            path.write_bytes(image.data)
            yield Text(f"picture {number + 1}: {name}, {size_in_words(len(image.data))}, saved as {path}")


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


def _line(label: str, value: str, after: str = "") -> RenderableType:
    """One line whatever the console's width, so that its value can be copied; printed without cropping."""
    line = Text.assemble((label, "dim"), storable(value), (after, "dim"), no_wrap=True, overflow="ignore")
    return Group(line)  # printed by itself, a text would be joined with its end and lose both settings
