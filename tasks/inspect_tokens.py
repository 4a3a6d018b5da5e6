"""Samples, documents and sequences for people: text, token spans in their modality's colour, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from infra.errors import CalummaError, StoreError
from infra.home import is_remote
from infra.storage import Storage
from infra.store.commit import load_own_manifest
from infra.store.sequences import INFO, SequenceReader
from model.processor.interleave import spans
from model.vocabulary import FIRST_IMAGE_CODE, Vocabulary
from tasks.artifacts import Tokenizers, load_tokenizers, made_from
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe
from tasks.sheets import Cell, labelled, png
from tasks.status import last_recipe
from tasks.steps import NAMES

PREVIEW = 24
"""Side of a picture in the terminal, characters; a character shows two pixels, one above the other."""
PREVIEWS = 6
TEXT_CHARACTERS = 1200
TEXT_STYLES = ("black on rgb(205,225,245)", "black on rgb(180,208,238)")
"""Neighbouring text tokens take turns."""
IMAGE_STYLE, CONTROL_STYLE, DAMAGED_STYLE = "black on rgb(245,205,160)", "black on rgb(205,205,205)", "white on red"
QUIET = "dim"
"""Tokens that carry no loss."""


@dataclass
class Readable:
    """What ids can be shown with: the tokenizers they were made with, where those are at hand; and pictures found."""

    tokenizers: Tokenizers | None = None
    vocabulary: Vocabulary | None = None
    codes_per_image: int = 0
    out: Path | None = None
    pictures: list[tuple[str, Image.Image]] = field(default_factory=list)
    why_not: str = ""

    @classmethod
    def near(cls, path: str, out: Path | None = None) -> Readable:
        """Looks for the work folder that holds a file, and in it for what the file was made with."""
        place = _place(path)
        if place is None:
            return cls(out=out, why_not="it does not lie in a work folder")
        workdir, step, start = place
        try:
            recipe = last_recipe(workdir.root)
            prints = _prints(workdir, step, start, recipe)
        except CalummaError as e:
            return cls(out=out, why_not=str(e))
        known = cls(None, recipe.vocabulary, recipe.image_tokenizer.codes_per_image, out)
        try:
            known.tokenizers = load_tokenizers(lambda name: workdir.sub(folder_of(name, prints[name])))
        except (CalummaError, KeyError):
            known.why_not = "its tokenizers are not finished"
        return known

    def text(self, ids: Sequence[int]) -> str | None:
        return None if self.tokenizers is None else self.tokenizers.text.decode(list(ids))

    def add(self, label: str, codes: Sequence[int]) -> str:
        """Keeps a picture for the end; the mark that stands for it meanwhile."""
        if self.tokenizers is None:
            return f"▣ {len(codes)} codes"
        (picture,) = self.tokenizers.pictures([codes])
        self.pictures.append((label, picture))
        return f"▣ picture {len(self.pictures)}"

    def finish(self) -> Iterator[RenderableType]:
        """The pictures: some in the terminal, all in the file that was asked for."""
        if self.pictures:
            shown = [
                Group(half_blocks(picture), Text(f"{number}: {label}"[: PREVIEW - 2], style="dim"))
                for number, (label, picture) in enumerate(self.pictures[:PREVIEWS], 1)
            ]
            yield Columns(shown, padding=(1, 2))
        if self.out is not None and self.pictures:
            cells = [Cell(p, [str(number), label]) for number, (label, p) in enumerate(self.pictures, 1)]
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_bytes(png(labelled(cells)))
            yield Text(f"{len(self.pictures)} pictures: {self.out}")
        elif self.out is not None:
            reason = f" ({self.why_not})" if self.why_not else ""
            yield Text(f"No pictures to write to {self.out}{reason}", style="yellow")


def half_blocks(picture: Image.Image, side: int = PREVIEW) -> Text:
    """A picture as coloured half blocks, ``side`` characters wide."""
    pixels = np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BOX))
    text = Text()
    for y in range(0, side - 1, 2):
        for upper, lower in zip(pixels[y].tolist(), pixels[y + 1].tolist(), strict=True):
            text.append("▀", style=f"rgb({upper[0]},{upper[1]},{upper[2]}) on rgb({lower[0]},{lower[1]},{lower[2]})")
        text.append("\n")
    return text


def show_samples(table: pa.Table, readable: Readable, limit: int) -> Iterator[RenderableType]:
    """Rows of the sample store: where they come from, what they say and show."""
    for row in table.slice(0, max(0, limit)).to_pylist():
        label = row["captions"][0] if row["captions"] else row["key"]
        marks = [readable.add(label, np.frombuffer(i["codes"], "<u2").tolist()) for i in row["images"]]
        body, role = Text(), ""
        if row["kind"] == "pairs":
            for mark, image in zip(marks, row["images"], strict=True):
                body.append(f" {mark}, from {image['width']}×{image['height']} ", IMAGE_STYLE).append("\n")
            body.append("\n".join(row["captions"]))
        for segment in row["segments"]:
            if segment["role"] and segment["role"] != role:
                role = segment["role"]
                body.append(f"\n{role}: " if body else f"{role}: ", "bold")
            if segment["image"] is not None:
                body.append(f" {marks[segment['image']]} ", IMAGE_STYLE)
            else:
                body.append(_cut(segment["text"] or ""))
        yield _panel(body, _title(row), f"{row['key']}, {row['file']} row {row['row']}, {row['licence']}")


def show_documents(table: pa.Table, readable: Readable, limit: int) -> Iterator[RenderableType]:
    """Rows of the document store as token spans."""
    for row in table.slice(0, max(0, limit)).to_pylist():
        ids = np.frombuffer(row["tokens"], "<u2")
        loss = None
        if row["kind"] == "messages":
            loss = np.unpackbits(np.frombuffer(row["loss"], np.uint8), count=len(ids), bitorder="little").astype(bool)
        bodies = [token_text(ids, readable, loss)] if len(ids) else []
        if row["picture"]:
            bodies = [token_text(np.frombuffer(row["picture"], "<u2"), readable)]
            bodies += [token_text(np.frombuffer(c, "<u2"), readable) for c in row["captions"]]
        lengths = ", ".join(map(str, row["lengths"]))
        yield _panel(Group(*bodies), _title(row), f"{lengths} tokens")


def show_sequences(store: Storage, name: str, readable: Readable, limit: int) -> Iterator[RenderableType]:
    """Sequences of one file, checked against their checksums: each document's origin, and its tokens."""
    digits = name.rpartition(".")[0].removeprefix("seq-")
    if not digits.isdigit():
        raise StoreError(f"{store.url(name)}: a sequence file is named seq-000000.u16")
    number, reader = int(digits), SequenceReader(store)
    first = number * reader.info.file_sequences
    spans_of_file = reader.spans(number).to_pylist()
    shown = range(first, min(first + max(0, limit), len(reader)))
    yield Text(f"{name}: sequences {first:,} to {first + reader.info.rows(number) - 1:,} of {len(reader):,}", "bold")
    yield from _sequences(reader, shown, spans_of_file, readable)


def show_sequence(store: Storage, sequence: int, readable: Readable) -> Iterator[RenderableType]:
    """One sequence of a stage's folder, by its number in it, which is in one of its files."""
    if not store.exists(INFO):
        raise StoreError(
            f"{store.root}: sequence {sequence:,} was asked for, and this is no folder of sequences. Name a stage's "
            "folder of a mixture: WORKDIR/mix/…/parts/stages/NAME."
        )
    reader = SequenceReader(store)
    if not 0 <= sequence < len(reader):
        raise StoreError(f"{store.root}: there is no sequence {sequence:,}; it holds 0 to {len(reader) - 1:,}")
    spans_of_file = reader.spans(sequence // reader.info.file_sequences).to_pylist()
    yield from _sequences(reader, [sequence], spans_of_file, readable)


def _sequences(
    reader: SequenceReader, shown: Iterable[int], spans_of_file: list[dict[str, Any]], readable: Readable
) -> Iterator[RenderableType]:
    for sequence in shown:
        tokens, starts, loss = reader.sequence(sequence)
        rows = [r for r in spans_of_file if r["sequence"] == sequence]
        used = sum(r["length"] for r in rows)
        parts: list[RenderableType] = []
        for r in rows:
            stretch = slice(r["offset"], r["offset"] + r["length"])
            whole = "" if r["first_token"] == 0 else f", from its token {r['first_token']}"
            origin = (
                f"{r['source']} {r['part']} row {r['row']}, occurrence {r['occurrence']}{whole}, {r['length']} tokens"
            )
            mark = "" if starts[r["offset"]] else "  (no start bit)"
            parts.append(Text(origin + mark, style="dim"))
            parts.append(token_text(tokens[stretch], readable, None if loss is None else loss[stretch]))
        title = f"sequence {sequence:,}: {len(rows)} documents, {used / len(tokens):.1%} filled"
        yield _panel(Group(*parts), title)


def token_text(ids: Any, readable: Readable, loss: Any = None) -> Text:
    """Ids as coloured spans: text tokens in turns of blue, pictures orange, controls grey; dim where no loss counts."""
    tokens = [int(t) for t in ids]
    if readable.vocabulary is None:
        return Text(" ".join(map(str, tokens[:400])) + (" …" if len(tokens) > 400 else ""))
    vocabulary, text = readable.vocabulary, Text()
    shown = 0
    for span in spans(tokens, vocabulary, readable.codes_per_image):
        quiet = f" {QUIET}" if loss is not None and not bool(loss[span.start : span.stop].any()) else ""
        own = tokens[span.start : span.stop]
        if span.kind == "control":
            text.append(vocabulary.name(own[0]), CONTROL_STYLE + quiet)
        elif span.kind == "image":
            codes = [t - FIRST_IMAGE_CODE for t in own if vocabulary.is_image_code(t)]
            mark = (
                readable.add(f"token {span.start}", codes)
                if span.whole
                else f"▣ {len(codes)} codes of a broken picture"
            )
            text.append(f" {mark} ", (IMAGE_STYLE if span.whole else DAMAGED_STYLE) + quiet)
        else:
            for k, token in enumerate(own):
                if shown > TEXT_CHARACTERS:
                    text.append(f" … {len(own) - k} more text tokens ", "dim")
                    break
                piece = vocabulary.name(token) if readable.tokenizers is None else readable.tokenizers.text.piece(token)
                shown += len(piece)
                text.append(piece.replace("\n", "⏎\n"), TEXT_STYLES[k % 2] + quiet)
            shown = 0
    return text


def _place(path: str) -> tuple[Storage, str, str] | None:
    """Work folder, step and fingerprint's beginning of a file that lies in ``WORKDIR/<step>/<fingerprint>/…``."""
    folders = (path if is_remote(path) else str(Path(path).resolve())).split("/")[:-1]
    for depth in range(len(folders) - 1, 0, -1):
        step, start = folders[depth - 1 : depth + 1]
        if step in NAMES and len(start) == 12:
            return Storage("/".join(folders[: depth - 1]) or "/"), step, start
    return None


def _prints(workdir: Storage, step: str, start: str, recipe: Recipe) -> dict[str, str]:
    """Fingerprints of what a step's folder was made from; by the last recipe where the step is not finished."""
    manifest = load_own_manifest(workdir.sub(f"{step}/{start}"), 0)
    if manifest is not None:
        found = made_from(workdir, step, manifest.fingerprint)
        if {"image-tokenizer", "text-tokenizer"} <= set(found):
            return found
    return fingerprints(recipe, workdir)


def _panel(body: RenderableType, title: str, subtitle: str = "") -> Panel:
    """A framed piece; its words are ``Text``, because rich would read ``[brackets]`` in them as markup."""
    return Panel(body, title=Text(title), title_align="left", subtitle=Text(subtitle), subtitle_align="right")


def _title(row: dict[str, Any]) -> str:
    words = [row["sample_id"].hex(), row["kind"], row["category"], "held out" if row["held_out"] else ""]
    return "  ".join(w for w in words if w)


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}… ({len(text):,} characters)"
