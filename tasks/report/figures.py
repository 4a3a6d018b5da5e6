"""The report's curves and bars, as SVG for inlining. Equal data give equal bytes.

One figure is one small panel: the page arranges them, side by side on a screen and one under another on a phone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

TEXT, IMAGE, CONTROL = "#2f6db3", "#d9772b", "#9aa1ab"
"""The modalities' colours, the same throughout the report."""
ACCENT, PALE, GREY, INK = "#2b8a5b", "#a9d5bf", "#c3c8cf", "#22272e"
SOURCES = ("#2b8a5b", "#7b5ea7", "#c2571a", "#2f6db3", "#b8930f", "#b0426a", "#3b8f98", "#6b7280")
"""Colours of sources, in the recipe's order."""

STYLE: Any = {
    "svg.hashsalt": "calumma",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#8b929b",
    "axes.labelcolor": "#4a525c",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "xtick.color": "#8b929b",
    "ytick.color": "#8b929b",
    "xtick.labelcolor": "#4a525c",
    "ytick.labelcolor": "#4a525c",
    "lines.linewidth": 1.6,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.75,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class Line:
    """A curve: its points, and how it looks. ``noisy`` ones are drawn faint under their running mean."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = INK
    noisy: bool = False
    dots: bool = False
    low: Sequence[float] = ()
    """Where each point stands for a stretch: the least and the largest of it, drawn faint as a band."""
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Bands:
    """Named stretches of the x axis: the stages of a training."""

    edges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """A figure with its title, and a line of words below; the page sets both as text."""

    title: str
    figure: Markup
    words: str = ""


def curves(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "step",
    y_label: str = "",
    words: str = "",
    log: bool = False,
    bands: Bands | None = None,
) -> Panel:
    """Lines over steps, with the stages as bands behind them."""
    with _axes(x_label, y_label) as (figure, axes):
        draw(axes, lines, log=log, bands=bands)
        return Panel(title, _svg(figure), words)


def draw(axes: Any, lines: Sequence[Line], *, log: bool = False, bands: Bands | None = None) -> None:
    """Lines over steps, with the stages as bands behind them, on matplotlib's axes."""
    for line in lines:
        style: dict[str, Any] = {"color": line.colour}
        if line.low:
            axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.18, linewidth=0)
        if line.noisy and len(line.y) > 20:
            if not line.low:
                axes.plot(line.x, line.y, **style, alpha=0.25, linewidth=0.8)
            axes.plot(line.x, running_mean(line.y), label=line.label, **style)
        else:
            marker = {"marker": "o", "markersize": 3} if line.dots else {}
            axes.plot(line.x, line.y, label=line.label, **style, **marker)
    if log:
        _log_scale(axes)
    edges = (bands or Bands()).edges
    for number, (name, (start, stop)) in enumerate(edges.items() if len(edges) > 1 else ()):
        if number % 2:
            axes.axvspan(start, stop, color="#f3f1ea", zorder=0, linewidth=0)
        place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
        axes.annotate(name, ((start + stop) / 2, 1.01), size=8, color="#8b929b", **place)
    axes.margins(x=0.01)
    if edges:  # all of the training, also where a curve has a few points of it: a stage's name must not lie outside
        first, last = min(start for start, _ in edges.values()), max(stop for _, stop in edges.values())
        pad = 0.01 * (last - first) or 0.5
        axes.set_xlim(first - pad, last + pad)
    if sum(bool(line.label) for line in lines) > 1:
        axes.legend(ncols=2 if len(lines) > 4 else 1, loc="best")


@dataclass(frozen=True)
class Bar:
    """A labelled group of bars: value, low and high end of its interval, as shares."""

    label: str
    values: Sequence[tuple[float, float, float]]


def shares(title: str, bars: Sequence[Bar], series: Sequence[tuple[str, str]], chance: float, words: str) -> Panel:
    """Horizontal bars of shares with intervals, and the chance level; ``series``: each value's label and colour."""
    with _axes("", "", height=0.7 + 0.26 * len(bars) * max(1, len(series)), width=3.9) as (figure, axes):
        thick = 0.8 / max(1, len(series))
        for row, bar in enumerate(bars):
            for (_, colour), s, (value, low, high) in zip(series, range(len(series)), bar.values, strict=False):
                y = row + (s - (len(series) - 1) / 2) * thick
                axes.barh(y, value, thick * 0.88, color=colour)
                axes.plot([low, high], [y, y], color=INK, linewidth=1, solid_capstyle="butt")
                axes.text(max(high, value) + 0.02, y, f"{value:.0%}", va="center", size=9, color=INK)
        axes.axvline(chance, color=INK, linestyle=":", linewidth=1.3)
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, 1.14)
        axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        return Panel(title, _svg(figure), words)


def codebook(counts: Sequence[int]) -> Panel:
    """How often each code is used, the most frequent first; the dotted line is an even use of all."""
    total, share = max(1, sum(counts)), sorted(counts, reverse=True)
    with _axes("codes, the most used first", "share of all codes") as (figure, axes):
        y = [c / total for c in share]
        x = range(1, len(y) + 1)
        axes.plot(x, y, color=ACCENT, drawstyle="steps-mid")
        axes.axhline(1 / len(y), color=INK, linestyle=":", linewidth=1.2)
        _log_scale(axes)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
        axes.margins(x=0.01)
        return Panel("Use of the codebook", _svg(figure), "Dotted: all codes used evenly.")


def _log_scale(axes: Any) -> None:
    """A log axis with labels at 1, 2 and 5 of each power of ten, as plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    wide = high / low > 300
    axes.yaxis.set_major_locator(LogLocator(10, (1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def running_mean(values: Sequence[float], share: float = 0.03) -> list[float]:
    """Mean over a window of about ``share`` of the curve, centred, shorter at the ends."""
    half = max(1, int(len(values) * share / 2))
    sums = [0.0]
    for v in values:
        sums.append(sums[-1] + v)
    spans = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in spans]


@contextmanager
def _axes(x_label: str, y_label: str, height: float = 2.6, width: float = 4.4) -> Iterator[tuple[Figure, Any]]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes: Any = figure.subplots()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        yield figure, axes


def _svg(figure: Figure) -> Markup:
    """The figure as an ``<svg>`` element that fills its place and writes in the page's own font."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", "inherit")
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return Markup(f'{head} role="img">{rest}')  # matplotlib has escaped its texts
