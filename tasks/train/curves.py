"""Trainings as curves, in one PNG: the image tokenizer's, and the transformer's while it trains.

What a plot of the transformer's training shows is said here alone; the report sets the same plots as SVG.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tasks.report.figures import ACCENT, GREY, IMAGE, INK, SOURCES, STYLE, TEXT, Bands, Line, draw
from tasks.train.history import History

PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("reconstruction losses", (("l1", "L1", INK), ("colour", "hue", ACCENT), ("perceptual", "LPIPS", IMAGE))),
    ("faces and objects", (("face", "faces", TEXT), ("object", "salient objects", ACCENT))),
    ("quantisation losses", (("commitment", "commitment", INK), ("codebook", "codebook", SOURCES[1]))),
    ("GAN", (("generator", "generator", IMAGE), ("discriminator", "discriminator", TEXT))),
    ("adaptive weight of the GAN", (("adaptive", "", INK),)),
    ("PSNR, dB", (("psnr", "this step's pictures", INK), ("held_out.psnr", "held-out", IMAGE))),
    ("SSIM", (("held_out.ssim", "held-out", IMAGE),)),
    ("LPIPS", (("held_out.lpips", "held-out", IMAGE),)),
    ("rFID", (("held_out.rfid", "held-out", IMAGE),)),
    ("codes in use, %", (("codebook_used", "training", INK), ("held_out.codebook_used", "held-out", IMAGE))),
    ("perplexity, codes", (("perplexity", "training", INK), ("held_out.perplexity", "held-out", IMAGE))),
)
"""The image tokenizer's: title, and of each curve the key in ``metrics.jsonl``, label and colour."""
COLUMNS = 3
DEPTH = ("#c9d9ee", "#9fbcdf", "#749ecf", "#4a81bf", "#2f6399", "#1d4068")
"""Layers from the first to the last."""


@dataclass(frozen=True)
class Plot:
    """Curves in one pair of axes."""

    title: str
    lines: Sequence[Line]
    y_label: str = ""
    log: bool = False


def curves_png(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """The curves of an image tokenizer's ``metrics.jsonl``."""
    plots = []
    for title, series in PANELS:
        found = [(label, colour, _points(lines, key)) for key, label, colour in series]
        drawn = [
            Line(label, [x for x, _ in points], [y for _, y in points], colour, dots=len(points) < 20)
            for label, colour, points in found
            if points
        ]
        if drawn:
            plots.append(Plot(title, drawn))
    return plots_png(plots)


def training_png(history: History, sources: Sequence[str] = ()) -> bytes:
    """The curves of a transformer's training; ``sources`` in the recipe's order, for their colours."""
    paint = {name: SOURCES[i % len(SOURCES)] for i, name in enumerate(sources)}
    return plots_png(training_plots(history, paint), Bands(history.stages()))


def training_plots(history: History, paint: Mapping[str, str] | None = None) -> list[Plot]:
    """What is to be seen of a transformer's training, the most telling first; ``paint``: colours of sources."""
    by_modality = (("text", TEXT), ("image", IMAGE))
    plots = [
        Plot(
            "Training loss by modality",
            [_line(history, f"train/loss_{m}", m, colour) for m, colour in by_modality],
            "nats a token",
        ),
        *_held_out(history, paint or {}),
        Plot("Gradient norm before clipping", [_line(history, "train/grad_norm", "", INK)], log=True),
        Plot("Norm of the last layer's output", [_line(history, "train/output_norm", "", ACCENT)]),
        Plot("Norm of the residual stream", _layers(history, "train/residual_norms/"), log=True),
        Plot("Largest attention logit, sampled", [_line(history, "train/max_attention_logit", "", INK)]),
        Plot("log Z by modality", [_line(history, f"train/log_z_{m}", m, colour) for m, colour in by_modality]),
        Plot(
            "Update over parameters",
            [
                _line(history, f"train/update_ratio/{key}", label, colour)
                for key, label, colour in (
                    ("all", "all", INK),
                    ("embedding", "embedding", SOURCES[1]),
                    ("lm_head", "output matrix", SOURCES[2]),
                    ("norms", "norms", GREY),
                )
            ],
            log=True,
        ),
        Plot("Learning rate", [_line(history, "train/learning_rate", "", ACCENT)]),
        Plot("Tokens a second", [_line(history, "train/tokens_per_s", "", INK)]),
        Plot(
            "MFU",
            [
                _line(history, "train/mfu_full", "full attention", INK, 100),
                _line(history, "train/mfu_causal", "causal attention", ACCENT, 100),
            ],
            "%",
        ),
    ]
    shown = [Plot(p.title, [line for line in p.lines if len(line.x)], p.y_label, p.log) for p in plots]
    return [plot for plot in shown if plot.lines]


def plots_png(plots: Sequence[Plot], bands: Bands | None = None) -> bytes:
    """Plots in rows; equal ones give equal bytes under one build of matplotlib."""
    with mpl.rc_context(STYLE):
        rows = max(1, -(-len(plots) // COLUMNS))
        figure = Figure(figsize=(4.2 * COLUMNS, 2.6 * rows), layout="constrained", dpi=100)
        grid = figure.subplots(rows, COLUMNS, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(plots):
                axes.set_axis_off()
                continue
            plot = plots[place]
            draw(axes, plot.lines, log=plot.log, bands=bands)
            axes.set_title(plot.title, fontsize=9, pad=14 if bands and len(bands.edges) > 1 else 6)
            axes.set_xlabel("step")
            axes.set_ylabel(plot.y_label)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _held_out(history: History, paint: Mapping[str, str]) -> list[Plot]:
    """Held-out loss: a plot for text and one for pictures, a line a source."""
    found = [name.split("/")[1] for name in history.names() if name.startswith("held_out/")]
    sources = [s for s in paint if s in found] + sorted({s for s in found if s not in paint})
    colours = {s: paint.get(s, SOURCES[i % len(SOURCES)]) for i, s in enumerate(sources)}
    return [
        Plot(title, [_line(history, f"held_out/{s}/{modality}", s, colours[s]) for s in sources], "nats a token")
        for modality, title in (("text", "Held-out loss, text"), ("image", "Held-out loss, pictures"))
    ]


def _layers(history: History, prefix: str) -> list[Line]:
    names = [name for name in history.names() if name.startswith(prefix)]
    labels = [name.removeprefix(prefix).lstrip("0") or "0" for name in names]
    return [
        _line(history, name, "embedding" if label == "0" else f"after layer {label}", DEPTH[i % len(DEPTH)])
        for i, (name, label) in enumerate(zip(names, labels, strict=True))
    ]


def _line(history: History, name: str, label: str, colour: str, scale: float = 1) -> Line:
    points = history.curve(name)
    stretched = any(p.low < p.high for p in points)
    return Line(
        label,
        [p.step for p in points],
        [scale * p.mean for p in points],
        colour,
        noisy=not name.startswith("held_out/") and name != "train/learning_rate",
        dots=len(points) < 30,
        low=[scale * p.low for p in points] if stretched else (),
        high=[scale * p.high for p in points] if stretched else (),
    )


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    held_out, name = key.startswith("held_out."), key.removeprefix("held_out.")
    found = []
    for line in lines:
        value = (line.get("held_out") or {} if held_out else line).get(name)
        if isinstance(value, int | float):
            found.append((int(line["step"]), 100 * value if name == "codebook_used" else float(value)))
    return found
