"""Real documents as packing sees them: how long, and where their pictures stand.

Those of the shared data: captions, texts, programs and illustrated documents under a BPE of 16,000 pieces, with
pictures of 1,026 tokens. Drawn again and again they make any amount in the paper's shares of 2.9 : 1.5 : 0.4 of the
tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import SHARED_DATA
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.train import train
from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, Vocabulary

LENGTH, PICTURE = 4096, 1026
WEIGHTS = {"text": 2.9, "pairs": 1.5, "interleaved": 0.4}
V = Vocabulary()
Ids = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Shape:
    """A real document, as far as packing sees it: tokens of text, with the number -1 where a picture stands."""

    pieces: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return 2 + sum(PICTURE if n < 0 else n for n in self.pieces)

    @property
    def pictures(self) -> list[int]:
        """Where each picture begins."""
        sizes = [PICTURE if n < 0 else n for n in self.pieces]
        return [1 + sum(sizes[:k]) for k, n in enumerate(self.pieces) if n < 0]


def shares() -> dict[str, float]:
    """The paper's shares of tokens."""
    return {name: weight / sum(WEIGHTS.values()) for name, weight in WEIGHTS.items()}


def real_shapes() -> dict[str, list[Shape]]:
    """The shared data's documents by source, in tokens."""
    if not SHARED_DATA.is_dir():
        raise SystemExit(f"{SHARED_DATA}: no such folder. This benchmark wants the real lengths of its documents.")
    files = [p for folder in ("text", "code") for p in sorted((SHARED_DATA / folder).glob("*.jsonl"))]
    texts = [line["text"] for path in files for line in _json_lines(path)]
    pairs = [caption for line in _json_lines(SHARED_DATA / "pairs/pairs.jsonl") for caption in line["captions"]]
    pages = [line["segments"] for line in _json_lines(SHARED_DATA / "interleaved/docs.jsonl")]
    sample = [text[:20_000] for text in texts[::4]] + pairs
    tokenizer = train(sample, TextTokenizerConfig(), Vocabulary(image_codes=64, text_start=72, size=72 + 16_000))

    def size(text: str | None) -> int:
        return len(tokenizer.encode(text or ""))

    return {
        "text": [Shape((size(text),)) for text in texts],
        "pairs": [Shape((-1, size(caption))) for caption in pairs],
        "interleaved": [
            Shape(tuple(-1 if s["type"] == "image" else size(s.get("text")) for s in page)) for page in pages
        ],
    }


def draw(shapes: Sequence[Shape], tokens: float, rng: np.random.Generator) -> list[Shape]:
    """Documents drawn with replacement until they have so many tokens."""
    found: list[Shape] = []
    while tokens > 0:
        found.append(shapes[int(rng.integers(len(shapes)))])
        tokens -= found[-1].tokens
    return found


def ids_of(shape: Shape, rng: np.random.Generator) -> Ids:
    """A document of that shape with ids that mean nothing."""
    pieces = [
        [V.boi, *rng.integers(FIRST_IMAGE_CODE, V.eoi, PICTURE - 2), V.eoi]
        if n < 0
        else rng.integers(V.text_start, V.size, n)
        for n in shape.pieces
    ]
    return np.concatenate([[BOS], *pieces, [EOS]]).astype(np.uint16)


def _json_lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as f:  # splitlines() would also cut at U+2028
        return [json.loads(line) for line in f]
