from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.vocabulary import BOS, EOS, Vocabulary
from tasks.context import StepContext
from tasks.mix.cut import Uses, cut_all, cuts
from tasks.mix.layout import LayoutMaker, Strand
from tasks.mix.layout import SliceItem as Item
from tasks.mix.packings import Streams

V = Vocabulary(image_codes=16, text_start=32, size=600)
PICTURE = [V.boi, *range(4, 14), V.eoi]
segments = st.lists(st.one_of(st.just(PICTURE), st.integers(0, 50).map(lambda n: [40] * n)), max_size=12)


def ids_of(segments: list[list[int]]) -> np.ndarray:
    return np.array([BOS, *(i for segment in segments for i in segment), EOS], np.uint16)


@settings(deadline=None)
@given(segments=segments, capacity=st.integers(len(PICTURE), 40))
def test_pieces_join_to_the_document_and_none_holds_half_a_picture(segments: list[list[int]], capacity: int) -> None:
    ids = ids_of(segments)
    found = list(cuts(len(ids), np.flatnonzero(ids == V.boi).tolist(), len(PICTURE), capacity))
    assert found[0][0] == 0
    assert found[-1][1] == len(ids)
    assert all(a[1] == b[0] for a, b in pairwise(found))
    for first, stop, image in found:
        piece = ids[first:stop]
        assert 0 < len(piece) <= capacity
        begins, ends = np.flatnonzero(piece == V.boi), np.flatnonzero(piece == V.eoi)
        np.testing.assert_array_equal(ends - begins, len(PICTURE) - 1)
        assert image == len(begins) * len(PICTURE)
    for first, stop, _ in found[:-1]:  # as long as possible: short only before a picture
        assert stop - first == capacity or ids[stop] == V.boi


@settings(deadline=None)
@given(documents=st.lists(segments, max_size=8), capacity=st.integers(len(PICTURE), 40))
def test_what_fits_is_one_piece_and_every_token_is_in_one(documents: list[list[list[int]]], capacity: int) -> None:
    ids = [ids_of(d) for d in documents]
    begins = [np.flatnonzero(i == V.boi) if len(i) > capacity else np.zeros(0, np.int64) for i in ids]
    counts = np.array([len(b) for b in begins], np.int64)
    images = [int(((i >= 4) & (i <= V.boi)).sum()) for i in ids]
    numbers = np.arange(len(ids))
    lengths = np.array([len(i) for i in ids], np.int64)
    uses = Uses(
        numbers, numbers, numbers, numbers, lengths, np.array(images, np.int64), counts, np.cumsum(counts) - counts
    )
    pieces = cut_all(uses, np.concatenate([np.zeros(0, np.int64), *begins]), capacity)
    seen = [np.zeros(len(i), np.int64) for i in ids]
    for use, first, length in zip(
        pieces.use_P.tolist(), pieces.first_P.tolist(), pieces.length_P.tolist(), strict=True
    ):
        assert length <= capacity
        seen[use][first : first + length] += 1
        assert length == len(ids[use]) or len(ids[use]) > capacity
    assert all((s == 1).all() for s in seen)
    for use, image in enumerate(images):
        assert int(pieces.image_P[pieces.use_P == use].sum()) == image


def test_any_stretch_of_the_merged_order_is_the_mixture(
    context_of: Callable[..., StepContext], streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    strands, totals = [], {}
    for name, stop in (("emoji", 900), ("text", 300), ("stories", 350)):
        stream = streams.stream(name, "pretrain", [name])
        totals[name] = stream.prefix(stop).tokens
        strands.append(Strand(name, "pretrain", 0, stop, totals[name], tuple(stream.runs(0, stop))))
    monkeypatch.setattr("tasks.mix.layout.load_group", lambda context, part: streams.load(part))
    maker = LayoutMaker(context_of())
    uses, _, sources, parts = maker.uses(Item("stages/x", 0, 1, tuple(strands)))
    assert len(uses) == 900 + 300 + 350
    assert len(set(zip(uses.part_K.tolist(), uses.row_K.tolist(), uses.occurrence_K.tolist(), strict=True))) == len(
        uses
    )
    assert len(parts) == 9
    at = np.cumsum(uses.length_K) / uses.length_K.sum()
    for name, total in totals.items():
        mine = uses.source_K == sources.index(name)
        assert int(uses.length_K[mine].sum()) == total
        for begin in (0.0, 0.35, 0.8):
            inside = (at >= begin) & (at < begin + 0.2)
            # A document of any of the three may lie across a border.
            assert abs(int(uses.length_K[mine & inside].sum()) - 0.2 * total) <= 3 * uses.length_K.max()
    # The same order, cut into slices: each document is in exactly one.
    pieces = [maker.uses(Item("stages/x", n, 7, tuple(strands)))[0] for n in range(7)]
    assert sum(map(len, pieces)) == len(uses)
    np.testing.assert_array_equal(np.concatenate([p.row_K for p in pieces]), uses.row_K)
    np.testing.assert_array_equal(np.concatenate([p.length_K for p in pieces]), uses.length_K)
