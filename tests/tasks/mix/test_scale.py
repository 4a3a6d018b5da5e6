"""The paper's own mixture, planned exactly from simulated lengths: 4.4 billion documents, 9.2 T tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.mix.config import MixConfig
from tasks.mix.group import PRETRAIN, Group
from tasks.mix.packings import Packing, slices_of
from tasks.mix.plan import named, outline, pretrain_intervals, supply_of
from tasks.mix.run import files_of
from tasks.mix.streams import Stream
from tasks.recipe import load_recipe

A_GROUP = 80_000
SIZES = {
    # documents, and the mean length that makes the paper's 2.9, 1.5 and 0.4 T tokens of them
    "text": (2_900_000_000, 1_000),
    "pairs": (1_400_000_000, 1_071),
    "interleaved": (123_000_000, 3_252),
    "quality-text": (200_000_000, 1_002),
    "quality-pairs": (100_000_000, 1_073),
    "sft-text": (1_600_000, 590),
    "sft-image-generation": (80_000, 1_058),
    "sft-visual-chat": (80_000, 1_200),
    "sft-interleaved-generation": (80_000, 2_118),
}


@cache
def group(source: str) -> Group:
    """One group stands for all of its source's: pairs with one or two captions, texts of every length."""
    rng = np.random.default_rng(len(source))
    mean = SIZES[source][1]
    paired, sft = "pairs" in source, source.startswith("sft")
    captions = rng.integers(1, 3, A_GROUP) if paired else np.ones(A_GROUP, np.int64)
    size = int(captions.sum())
    if paired:
        lengths, image = 1_028 + rng.integers(10, 2 * (mean - 1_028) - 10, size), np.full(A_GROUP, 1_026)
    else:
        lengths = np.maximum(8, rng.exponential(mean, size)).astype(np.int64)
        share = 0.79 if "interleaved" in source or source.endswith(("chat", "-generation")) else 0.0
        image = (lengths * share).astype(np.int64)
    none, zeros = np.zeros(A_GROUP, np.bool_), np.zeros(A_GROUP, np.int64)
    return Group(
        source=source,
        parts=(f"{source}-000000",),
        part_N=zeros,
        row_N=np.arange(A_GROUP),
        held_out_N=none,
        pretrain_N=zeros,
        finetune_N=zeros - 1,
        categories=("",),
        category_N=zeros,
        pair_N=none | paired,
        turn_N=rng.integers(0, 2, A_GROUP) % captions,
        image_first_N=rng.random(A_GROUP) < 0.5,
        captions_N=captions,
        first_length_N=np.cumsum(captions) - captions,
        lengths_M=lengths.astype(np.int64),
        image_tokens_N=image.astype(np.int64),
        answer_tokens_N=zeros + (100 if sft else 0),
        pictures_N=zeros,
        first_picture_N=zeros,
        pictures_M=zeros[:0],
        fits_N=none,
    )


@pytest.fixture(scope="module")
def streams() -> dict[str, Stream]:
    found = {}
    for name, (documents, _) in SIZES.items():
        totals = group(name).totals(group(name).members(PRETRAIN))
        groups = [(f"index-{name}-{n:06d}", totals) for n in range(documents // A_GROUP)]
        found[name] = Stream(name, PRETRAIN, groups, lambda part: group(part[6:-7]), seed=0)
    return found


def test_intervals_and_slices_of_the_papers_mixture(streams: dict[str, Stream]) -> None:
    mix: MixConfig = load_recipe("chameleon-7b", ["mix.max_passes=5"]).mix
    wanted = outline(mix, {n: supply_of(streams[n], streams[n].per_pass) for n in named(mix)})
    assert wanted.passes == pytest.approx(1.92, abs=0.02)
    stages = pretrain_intervals(mix, streams, wanted)
    assert sum(i.quota for stage in stages for i in stage) == 9_200_000_000_000
    longest = {n: int(group(n).lengths_M.max()) for n in SIZES}
    for intervals, stage in zip(stages, mix.stages, strict=True):
        for i in intervals:
            assert 0 <= i.counted - i.quota < longest[i.stream]  # a document of 9.2 T tokens
        share = sum(i.tokens for i in intervals) / 9.2e12
        assert share == pytest.approx(stage.share, abs=1e-8)
    for first, second in zip(stages[0], stages[1], strict=False):
        assert (first.stream, first.stop) == (second.stream, second.start)
    images = [sum(i.image_tokens for i in s) / sum(i.tokens for i in s) for s in stages]
    assert images[1] == pytest.approx(images[0], abs=0.001)
    # As work items: two thousand slices, each with the runs of groups that it needs, and every run in one of them.
    for intervals, stage in zip(stages, mix.stages, strict=True):
        packing = Packing("pretrain", stage.name, [streams[i.stream] for i in intervals], intervals, loss=False)
        items = slices_of(packing, mix)
        assert len(items) == -(-sum(i.tokens for i in intervals) // (4096 << 20))
        needed = [len(strand.runs) for item in items for strand in item.strands]
        assert max(needed) < 64  # groups of one source that a slice touches
        for i in intervals:
            runs = {(r.turn, r.number) for item in items for s in item.strands if s.stream == i.stream for r in s.runs}
            assert len(runs) == len(streams[i.stream].runs(i.start, i.stop))


class Unwalked(list[str]):
    """Names of slices that nobody may go through from the first."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("files times slices: 94 million steps for the paper's first stage")


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 12))
def test_every_sequence_of_every_slice_is_in_one_file(slices: list[int], size: int) -> None:
    packing = Packing("pretrain", "one", [], [], loss=False, slices=slices)
    packing.layouts = Unwalked([f"layout-{n}" for n in range(len(slices))])
    context: Any = SimpleNamespace(recipe=SimpleNamespace(mix=SimpleNamespace(file_sequences=size)))
    files = list(files_of(packing, context))
    assert [(f.number, f.first) for f in files] == [(n, n * size) for n in range(len(files))]
    found = []
    for file in files:
        held = [(s.file, s.first, n) for s in file.stretches for n in range(s.start, s.stop)]
        assert len(held) == file.sequences == min(size, packing.sequences - file.first)
        assert all(s.start < s.stop for s in file.stretches)
        found += held
    first = [sum(slices[:n]) for n in range(len(slices))]
    assert found == [(f"layout-{n}", first[n], k) for n, count in enumerate(slices) for k in range(count)]
