"""Fixtures of small sources made of files, and contexts over them; conftest files import what they need."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tasks.context import StepContext
from tasks.recipe import parse_recipe

Jsonl = Callable[[str, list[Any]], Path]
Pictures = Callable[[int], list[str]]
MakeContext = Callable[..., StepContext]


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """``make_context(step, sources, **sections)``: a context over sources whose paths start at ``tmp_path``."""

    def make(step: str, sources: list[dict[str, Any]], workdir: str = "work", **sections: Any) -> StepContext:
        recipe = {
            "name": "test",
            "folder": str(tmp_path),
            "vocabulary": {"image_codes": 64, "text_start": 80, "size": 1080},
            "image_tokenizer": {"codes": 64, "resolution": 16, "multipliers": [1, 1, 1]},
            "text_tokenizer": {"sample_bytes": 100_000},
            "sources": sources,
            "mix": {
                "tokens": 1000,
                "sequence_length": 64,
                "stages": [{"name": "one", "share": 1, "weights": {sources[0]["name"]: 1}}],
            },
            "finetune_mix": {"sources": [s["name"] for s in sources if s["kind"] == "messages"]},
        }
        return StepContext(parse_recipe(recipe | sections), str(tmp_path / workdir), step)

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Jsonl:
    """``jsonl(name, rows)``: writes rows (objects, or lines as they are) below ``tmp_path``."""

    def write(name: str, rows: list[Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """``pictures(count)``: writes that many different PNGs; their names."""

    def write(count: int) -> list[str]:
        names = [f"p{n:03d}.png" for n in range(count)]
        for n, name in enumerate(names):
            (tmp_path / name).write_bytes(picture_bytes(n))
        return names

    return write


def picture_bytes(number: int, side: int = 16) -> bytes:
    """A PNG unlike that of any other number below 256."""
    image = Image.new("RGB", (side, side), (number, 255 - number, 128))
    for n in range(side):
        image.putpixel((n, n * 7 % side), (255, number, n))
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()
