"""The mixture for people: a table for the terminal, before and after it is made, and bars as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from rich.console import Group
from rich.table import Table

from infra.store.plan import PackedStore, Plan
from tasks.mix.plan import Outline
from tasks.sheets import FAINT, INK, WHITE, png

COLOURS = ("#2b8a5b", "#7b5ea7", "#c2571a", "#2f6db3", "#b8930f", "#b0426a", "#3b8f98", "#6b7280")
MODALITIES = {"text": "#2f6db3", "image": "#d9772b", "control": "#9aa1ab"}
"""As in the report (``tasks/report/figures.py``, which takes a second to import)."""
_WIDTH, _LABEL, _BAR, _ROW = 960, 130, 22, 64


@dataclass(frozen=True, slots=True)
class Line:
    """What a stage holds of one source."""

    stage: str
    source: str
    share: float
    tokens: int
    image_share: float
    passes: float


def lines_of_outline(found: Outline) -> list[Line]:
    """The mixture as it is wished for."""
    return [
        Line(q.stage, q.source, q.share, q.tokens, q.image_tokens / max(1, q.tokens), q.passes) for q in found.quotas
    ]


def lines_of_plan(stores: Iterable[PackedStore]) -> list[Line]:
    """The mixture as it was packed."""
    return [
        Line(
            store.name,
            i.stream,
            i.tokens / max(1, sum(j.tokens for j in store.intervals)),
            i.tokens,
            i.image_tokens / max(1, i.tokens),
            i.stop / max(1, i.per_pass),
        )
        for store in stores
        for i in store.intervals
    ]


def mixture_table(lines: Iterable[Line], title: str) -> Table:
    """A line a stage and source, a sum a stage: shares of tokens, image tokens among them, and how often the source has
    been gone through when the stage ends."""
    table = Table(title=title, title_justify="left")
    for column in ("stage", "source", "share", "tokens", "images", "passes"):
        table.add_column(column, justify="left" if column in ("stage", "source") else "right", overflow="fold")
    by_stage: dict[str, list[Line]] = {}
    for line in lines:
        by_stage.setdefault(line.stage, []).append(line)
    for stage, own in by_stage.items():
        for number, line in enumerate(own):
            table.add_row(
                stage if number == 0 else "",
                line.source,
                f"{line.share:.2%}",
                f"{line.tokens:,}",
                f"{line.image_share:.1%}",
                f"{line.passes:,.2f}",
            )
        tokens = sum(line.tokens for line in own)
        image = sum(line.tokens * line.image_share for line in own) / max(1, tokens)
        table.add_row("", "[dim]together[/]", "", f"[dim]{tokens:,}[/]", f"[dim]{image:.1%}[/]", "", end_section=True)
    return table


def show_plan(plan: Plan) -> Group:
    """What ``mix`` made: the stages by source, and how full and whole their sequences are."""
    stores = [*plan.stages, *plan.finetune]
    packed = Table(title=f"Sequences of {plan.sequence_length:,}", title_justify="left")
    columns = ("packed", "sequences", "full", "images", "documents", "split", "left out", "pictures cut")
    for column in columns:
        packed.add_column(column, justify="left" if column == "packed" else "right")
    for s in [*stores, *plan.held_out.values()]:
        counts = (f"{n:,}" for n in (s.documents, s.split_documents, s.left_out, s.cut_pictures))
        name = s.name if s.kind != "held-out" else f"held-out/{s.name}"
        packed.add_row(name, f"{s.sequences:,}", f"{s.fill:.2%}", f"{s.image_share:.2%}", *counts)
    return Group(mixture_table(lines_of_plan(stores), "Mixture"), packed)


def bars(plan: Plan) -> bytes:
    """Each stage and epoch as two bars, by source and by modality: PNG."""
    stores = [*plan.stages, *plan.finetune]
    names = list(dict.fromkeys(i.stream for store in stores for i in store.intervals))
    paint = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}
    font = ImageFont.load_default(13)
    legend = -(-(len(names) + len(MODALITIES)) // 4)
    sheet = Image.new("RGB", (_WIDTH, 16 + _ROW * len(stores) + 22 * legend + 12), WHITE)
    draw = ImageDraw.Draw(sheet)
    for number, store in enumerate(stores):
        y = 12 + _ROW * number
        tokens = sum(i.tokens for i in store.intervals)
        draw.text((10, y + 3), store.name, INK, font)
        draw.text((10, y + 21), f"{_short(tokens)} tokens", FAINT, font)
        _bar(draw, y, [(i.tokens, paint[i.stream]) for i in store.intervals])
        by_modality = {m: sum(counts.get(m, 0) for counts in store.tokens.values()) for m in MODALITIES}
        _bar(draw, y + _BAR + 2, [(by_modality[m], MODALITIES[m]) for m in MODALITIES])
    for number, (name, colour) in enumerate([*paint.items(), *MODALITIES.items()]):
        x, y = 10 + number % 4 * (_WIDTH // 4), 16 + _ROW * len(stores) + 22 * (number // 4)
        draw.rectangle((x, y + 3, x + 12, y + 15), colour)
        draw.text((x + 18, y + 1), name, INK, font)
    return png(sheet)


def _bar(draw: ImageDraw.ImageDraw, y: int, pieces: list[tuple[int, str]]) -> None:
    total, done, room = max(1, sum(n for n, _ in pieces)), 0, _WIDTH - _LABEL - 12
    for count, colour in pieces:
        left, right = (_LABEL + round(room * n / total) for n in (done, done + count))
        if right > left:
            draw.rectangle((left, y, right - 1, y + _BAR - 1), colour)
        done += count


def _short(n: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if n >= size:
            return f"{n / size:,.3g} {unit}"
    return f"{n:,}"
