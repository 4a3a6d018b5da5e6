"""A training of the image tokenizer as curves, in one PNG: losses, figures of merit, use of the codebook."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tasks.report.figures import ACCENT, IMAGE, INK, SOURCES, STYLE, TEXT

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
"""Title, and of each curve the key in ``metrics.jsonl``, label and colour. A panel without figures is left out."""
COLUMNS = 3


def curves_png(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """The curves of a training's ``metrics.jsonl``; equal lines give equal bytes under one build of matplotlib."""
    panels = []
    for title, series in PANELS:
        found = [(label, colour, _points(lines, key)) for key, label, colour in series]
        if drawn := [curve for curve in found if curve[2]]:
            panels.append((title, drawn))
    with mpl.rc_context(STYLE):
        rows = max(1, -(-len(panels) // COLUMNS))
        figure = Figure(figsize=(4.2 * COLUMNS, 2.6 * rows), layout="constrained", dpi=100)
        grid = figure.subplots(rows, COLUMNS, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_axis_off()
                continue
            title, drawn = panels[place]
            for label, colour, points in drawn:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, label=label, marker="o" if len(x) < 20 else None, markersize=3)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("step")
            if len(drawn) > 1:
                axes.legend()
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    held_out, name = key.startswith("held_out."), key.removeprefix("held_out.")
    found = []
    for line in lines:
        value = (line.get("held_out") or {} if held_out else line).get(name)
        if isinstance(value, int | float):
            found.append((int(line["step"]), 100 * value if name == "codebook_used" else float(value)))
    return found
