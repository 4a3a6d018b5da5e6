"""From the report's data to one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from infra.words import size_in_words

FOLDER = Path(__file__).resolve().parent
LOSSLESS_UP_TO = 128
"""Side up to which pictures are embedded without loss, pixels."""


def render(data: dict[str, Any]) -> str:
    """The page. Every text is escaped by the template engine; an unknown name in the template is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "percent": percent,
        "duration": duration,
        "number": number,
        "size": size_in_words,
    }
    environment.globals["style"] = (FOLDER / "style.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(data)


def uri(picture: Image.Image) -> str:
    """The picture as a ``data:`` URI: WebP, without loss if it is small."""
    out = io.BytesIO()
    lossless = max(picture.size) <= LOSSLESS_UP_TO
    picture.convert("RGB").save(out, "WEBP", lossless=lossless, quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def png_uri(data: bytes) -> str:
    """PNG bytes as a ``data:`` URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def count(value: float) -> str:
    """``1,234`` up to a million, then ``3.21 M``, ``1.4 B``, ``9.2 T``."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:,.0f}"


def percent(value: float, digits: int = 0) -> str:
    """``12%``; a share that is no number is a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}%}"


def number(value: float | None, digits: int = 3) -> str:
    """A figure with some significant digits; nothing is a dash."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """``3.2 s``, ``4 min 05 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"
