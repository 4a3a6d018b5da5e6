"""The data of ``benchmarks.stability``: real pictures and texts as tokens, packed.

The data are captioned pictures and web texts of the shared data. A picture becomes codes of 8x8 patches by the
repository's k-means (its tokenizer would want hours of training first), a text pieces by its BPE; documents and packing
are those of pre-training, half of the tokens pairs'. Codes are nearly incompressible and texts are not, which is what
makes a softmax that both share drift (paper, section 2.2). Rows are held out by picture and by text: training sees no
piece of either.

Shape letters: B pictures, C channels, H and W pixels, S patches of a picture, N patches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import SHARED_DATA
from benchmarks.image_transforms import MAX_PIXELS, REFERENCE
from benchmarks.trainers import Ids
from model.image_tokenizer.quantize import kmeans, nearest
from model.text_tokenizer.codec import TextTokenizer
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.train import train as train_text
from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, Vocabulary
from tasks.mix.bestfit import best_fit

PATCH = 8
HELD_OUT_SHARE = 12
"""Of so many pictures, and of so many texts, one is kept apart for the loss at the end."""
HELD_OUT_ROWS = 64
"""At most."""


class Rows(NamedTuple):
    """Packed rows of documents."""

    held_out: list[list[Ids]]
    training: list[list[Ids]]


@dataclass(frozen=True)
class Scale:
    """Size of the model, its data and its training."""

    dim: int
    layers: int
    heads: int
    side: int
    """Codes along a picture's side."""
    codes: int
    pieces: int
    length: int
    batch: int
    steps: int
    warmup: int

    @property
    def vocabulary(self) -> Vocabulary:
        start = self.codes + 8
        return Vocabulary(image_codes=self.codes, text_start=start, size=start + self.pieces)


SCALES = {
    "tiny": Scale(dim=32, layers=2, heads=2, side=4, codes=16, pieces=400, length=64, batch=4, steps=6, warmup=2),
    "small": Scale(dim=96, layers=3, heads=3, side=8, codes=256, pieces=760, length=128, batch=4, steps=400, warmup=40),
    "large": Scale(
        dim=512, layers=8, heads=8, side=16, codes=1024, pieces=4088, length=512, batch=16, steps=1500, warmup=100
    ),
}
"""tiny: for tests; small: a 2-core machine; large: a GPU."""


def rows_of(scale: Scale, data: Path = SHARED_DATA) -> Rows:
    """Packed rows of documents, shuffled; half of the tokens are pairs', half web texts'."""
    if not data.is_dir():
        raise SystemExit(
            f"{data}: no such folder. The study wants its pictures and texts, or rows made of them before."
        )
    pairs = _json_lines(data / "pairs/pairs.jsonl")[: 40 if scale is SCALES["tiny"] else None]
    web = [line["text"] for line in _json_lines(data / "text/c4_web.jsonl")]
    captions = [caption for pair in pairs for caption in pair["captions"]]
    tokenizer = train_text([*captions, *web], TextTokenizerConfig(), scale.vocabulary)
    files = [(data / "pairs" / pair["file"]).read_bytes() for pair in pairs]
    pictures = np.stack([REFERENCE.crop_file(file, scale.side * PATCH, MAX_PIXELS) for file in files])
    codes = picture_codes(pictures, scale.codes).tolist()
    rng = np.random.default_rng(0)

    def rows(apart: bool) -> list[list[Ids]]:
        mine = [i for i in range(len(pairs)) if (i % HELD_OUT_SHARE == 0) == apart]
        texts = [text for i, text in enumerate(web) if (i % HELD_OUT_SHARE == 0) == apart]
        return _packed_rows(scale, tokenizer, rng, [(pairs[i]["captions"], codes[i]) for i in mine], texts)

    return Rows(rows(apart=True)[:HELD_OUT_ROWS], rows(apart=False))


def _packed_rows(
    scale: Scale,
    tokenizer: TextTokenizer,
    rng: np.random.Generator,
    pairs: Sequence[tuple[Sequence[str], Sequence[int]]],
    texts: Sequence[str],
) -> list[list[Ids]]:
    """Rows of captioned pictures' documents, and of pieces of texts with as many tokens."""
    vocabulary, documents = scale.vocabulary, list[Ids]()

    def add(*parts: Sequence[int]) -> int:
        ids = np.concatenate([[BOS], *parts, [EOS]])[: scale.length].astype(np.uint16)
        documents.append(ids)
        return len(ids)

    left = 0
    for number, (captions, codes) in enumerate(pairs):
        picture = [vocabulary.boi, *(FIRST_IMAGE_CODE + code for code in codes), vocabulary.eoi]
        for use, words in enumerate(captions[:2]):
            caption = tokenizer.encode(words)[: scale.length - len(picture) - 2]
            left += add(picture, caption) if (number + use) % 2 else add(caption, picture)
    while left > 0:
        text = tokenizer.encode(texts[int(rng.integers(len(texts)))][:2000])
        size = int(rng.integers(8, scale.length - 1))
        begin = int(rng.integers(max(1, len(text) - size)))
        left -= add(text[begin : begin + size])
    sequence_N, _, opened = best_fit(np.array([len(ids) for ids in documents], np.int64), scale.length)
    rows: list[list[Ids]] = [[] for _ in range(opened)]
    for ids, row in zip(documents, sequence_N.tolist(), strict=True):
        rows[row].append(ids)
    rng.shuffle(rows)
    return rows


def picture_codes(pictures_BHWC: np.ndarray[Any, Any], codes: int) -> Tensor:
    """Codes of the patches in raster order, (B, S): the nearest of ``codes`` centres of these very patches."""
    x_BCHW = torch.from_numpy(pictures_BHWC).permute(0, 3, 1, 2).float() / 255
    x_BSC = x_BCHW.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x_NC = x_BSC.flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(x_NC), generator=generator)[: 60 * codes]
    return nearest(x_NC, kmeans(x_NC[some], codes, 6, generator)).view(len(x_BSC), -1)


def save_rows(file: Path, found: Rows) -> None:
    """Keeps them, so that another machine needs no data and every training has the same."""
    rows = [*found.held_out, *found.training]
    lengths = [[len(ids) for ids in row] for row in rows]
    tokens = np.concatenate([ids for row in rows for ids in row])
    np.savez_compressed(
        file,
        tokens=tokens,
        lengths=np.concatenate(lengths),
        documents=np.array([len(row) for row in rows]),
        held_out=len(found.held_out),
    )


def load_rows(file: Path) -> Rows:
    """What :func:`save_rows` kept."""
    with np.load(file) as found:
        ids = np.split(found["tokens"], np.cumsum(found["lengths"])[:-1])
        borders = np.cumsum(found["documents"]).tolist()
        apart = int(found["held_out"])
    rows = [ids[begin:end] for begin, end in zip([0, *borders], borders, strict=False)]
    return Rows(rows[:apart], rows[apart:])


def frequency_loss(scale: Scale, rows: Rows) -> float:
    """Held-out loss of one who knows how often each token comes, and nothing else."""
    counts = np.bincount(np.concatenate([i for row in rows.training for i in row]), minlength=scale.vocabulary.size)
    shares = (counts + 0.5) / (counts + 0.5).sum()
    return float(-np.log(shares[np.concatenate([ids[1:] for row in rows.held_out for ids in row])]).mean())


def _json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]  # of bytes: U+2028 ends no line
