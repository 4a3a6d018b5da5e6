"""The picture of ``benchmarks.stability``: six panels, a line a variant.

Colour says what is done about the logits, the style which norm order: solid pre-norm, dashed reordered.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import median
from tasks.report.figures import STYLE

COLOURS = {"none": "#c0392b", "z-loss": "#e08e2b", "QK-norm": "#2e7fb8", "QK-norm + z-loss": "#2c8c5a"}
REORDERED = "reordered norm"
Run = Mapping[str, Any]


def picture(runs: Sequence[Run], worst: float) -> bytes:
    """PNG: what became of each variant by learning rate, and the course of the highest rate."""
    names = list(dict.fromkeys(r["variant"] for r in runs))
    top = max(r["rate"] for r in runs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.5, 7.6), layout="constrained", dpi=100)
        (loss, logit, norm), (course, growth, log_z) = figure.subplots(2, 3)
        loss.axhline(worst, color="#8b929b", linewidth=1, linestyle=":")
        loss.annotate(
            "token frequencies alone", (0.02, worst), xycoords=("axes fraction", "data"), fontsize=8, va="bottom"
        )
        for name in names:
            mine = [r for r in runs if r["variant"] == name]
            _by_rate(loss, mine, name, lambda r: min(r["held_out"]["loss"], 1.5 * worst))
            _by_rate(logit, mine, name, lambda r: _peak(r, "max_attention_logit"))
            _by_rate(norm, mine, name, lambda r: r["course"][-1]["output_norm"])
            _by_rate(log_z, mine, name, lambda r: math.sqrt(r["course"][-1]["z2"]))
            for run in mine:
                if run["rate"] == top and run["seed"] == min(r["seed"] for r in mine):
                    _course(course, run, name, "loss")
                    _course(growth, run, name, "max_attention_logit")
        _label(loss, "held-out loss at the end, nats", "peak learning rate")
        _label(logit, "largest attention logit of the run", "peak learning rate", logarithmic=True)
        _label(norm, "norm of the last layer's output at the end", "peak learning rate", logarithmic=True)
        _label(course, f"training loss at rate {top:g}, first seed", "step")
        _label(growth, f"attention logit at rate {top:g}, first seed", "step", logarithmic=True)
        _label(log_z, "root mean square of log Z at the end", "peak learning rate")
        handles, labels = loss.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def style_of(variant: str) -> dict[str, Any]:
    """Colour and line of a variant."""
    logits = " + ".join(part for part in variant.split(" + ") if part != REORDERED) or "none"
    reordered = REORDERED in variant
    return {"color": COLOURS[logits], "linestyle": "--" if reordered else "-", "marker": "s" if reordered else "o"}


def _by_rate(axes: Axes, runs: Sequence[Run], name: str, value: Any) -> None:
    """The median over seeds, and each seed faintly."""
    rates = sorted({r["rate"] for r in runs})
    found = [[v for r in runs if r["rate"] == rate and math.isfinite(v := value(r))] for rate in rates]
    kept = [(rate, values) for rate, values in zip(rates, found, strict=True) if values]
    axes.plot([r for r, _ in kept], [median(v) for _, v in kept], label=name, markersize=3.5, **style_of(name))
    for rate, values in kept:
        axes.plot([rate] * len(values), values, "_", color=style_of(name)["color"], alpha=0.5)
    axes.set_xscale("log")


def _course(axes: Axes, run: Run, name: str, key: str) -> None:
    points = [(line["step"], line[key]) for line in run["course"] if math.isfinite(line[key])]
    axes.plot(*zip(*points, strict=True), **{**style_of(name), "marker": None}, linewidth=1.2)


def _label(axes: Axes, title: str, x: str, *, logarithmic: bool = False) -> None:
    axes.set_title(title, fontsize=9.5)
    axes.set_xlabel(x)
    if logarithmic and axes.dataLim.y1 > 0:  # not where nothing finite was drawn
        axes.set_yscale("log")


def _peak(run: Run, key: str) -> float:
    return max((line[key] for line in run["course"] if math.isfinite(line[key])), default=math.nan)
