"""Batches: constant in size, cut in order, equal pictures encoded once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tasks.encode.batches import WHITE, BatchEncoder, Picture
from tasks.encode.decode import ImageError
from tasks.encode.transforms import Pixels

SIDE = 2


class Tokenizer:
    """Codes are a picture's first two bytes; remembers its batches."""

    def __init__(self) -> None:
        self.config, self.device = SimpleNamespace(resolution=SIDE), torch.device("cpu")
        self.batches: list[Any] = []

    def encode(self, images_BCHW: Tensor) -> Tensor:
        self.batches.append(images_BCHW.clone().numpy())
        return images_BCHW[:, 0, 0, :2].long()


def encoder(size: int, depth: int | None = None) -> tuple[BatchEncoder, Tokenizer]:
    tokenizer = Tokenizer()
    return BatchEncoder(cast("Any", tokenizer), size, depth), tokenizer


def picture(number: int, decoded: Callable[[int], None] = lambda number: None) -> Picture:
    def square() -> Pixels:
        decoded(number)
        if number < 0:
            raise ImageError("corrupt", f"picture {number}")
        return np.full((SIDE, SIDE, 3), number, np.uint8)

    return Picture(str(number).encode(), square)


def code(number: int) -> bytes:
    return np.array([number, number], "<u2").tobytes()


@given(st.lists(st.lists(st.integers(-2, 30), max_size=4), max_size=20), st.integers(1, 7), st.integers(1, 3))
def test_every_kept_sample_finds_its_own_codes(samples: list[list[int]], size: int, depth: int) -> None:
    batches, tokenizer = encoder(size, depth)
    kept = []
    for sample in samples:
        try:
            kept.append((sample, batches.add([picture(n) for n in sample])))
        except ImageError:
            assert min(sample) < 0
    codes = batches.finish()
    assert [[codes[place] for place in places] for _, places in kept] == [[code(n) for n in s] for s, _ in kept]
    different = list(dict.fromkeys(n for sample, _ in kept for n in sample))
    assert len(codes) == len(different)
    assert [len(batch) for batch in tokenizer.batches] == [size] * -(-len(different) // size)
    seen = [int(image[0, 0, 0]) for batch in tokenizer.batches for image in batch]
    assert seen == different + [WHITE] * (len(seen) - len(different))


def test_a_bad_picture_leaves_nothing_of_its_sample_in_a_batch() -> None:
    batches, tokenizer = encoder(4)
    with pytest.raises(ImageError, match="picture -1"):
        batches.add([picture(7), picture(-1)])
    assert b"7" not in batches
    batches.add([picture(8)])
    batches.finish()
    assert int(tokenizer.batches[0][0, 0, 0, 0]) == 8


def test_an_equal_picture_is_not_decoded_again() -> None:
    batches, _ = encoder(2)
    decoded: list[int] = []
    for numbers in ([1, 1], [2], [1, 2]):
        batches.add([picture(n, decoded.append) for n in numbers])
    assert decoded == [1, 2]
    assert b"1" in batches
    assert batches.finish() == [code(1), code(2)]


def test_nothing_encodes_nothing() -> None:
    batches, tokenizer = encoder(3)
    assert batches.finish() == []
    assert tokenizer.batches == []
