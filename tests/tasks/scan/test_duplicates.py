from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import SourceError
from tasks.scan.config import SelectConfig
from tasks.scan.duplicates import EXACT, KEEP, NEAR, PERCEPTUAL, Candidates, duplicates

Sample = tuple[int, int, int | None, tuple[int, ...]]
"""Id, content, perceptual hash, bands."""
ALL = SelectConfig(perceptual_duplicates=True, near_duplicates=True, memory_mb=128)


def as_candidates(samples: Sequence[Sample]) -> Candidates:
    hashed = [s[2] for s in samples]
    owners = [(row, band) for row, sample in enumerate(samples) for band in sample[3]]
    return Candidates(
        ids=np.array([[s[0], 7] for s in samples], np.uint64).reshape(-1, 2),
        contents=np.array([[1, s[1]] for s in samples], np.uint64).reshape(-1, 2),
        phashes=None if None in hashed else np.array(hashed, np.uint64),
        near=(np.array([r for r, _ in owners], np.int64), np.array([b for _, b in owners], np.uint64)),
    )


def fates(parts: Sequence[tuple[int, Sequence[Sample]]], config: SelectConfig = ALL) -> dict[int, int]:
    """By id, of parts given with their generation."""
    with tempfile.TemporaryDirectory() as folder, duplicates(config, Path(folder)) as found:
        ranges = [found.add(as_candidates(samples), retry) for retry, samples in parts]
        found.decide("s")
        chosen: dict[int, int] = {}
        for (_, samples), place in zip(parts, ranges, strict=True):
            ids, decided = found.decisions(*place)
            assert [int.from_bytes(i[:8], "big") for i in ids] == [s[0] for s in samples], "in the part's order"
            assert all(i[8:] == (7).to_bytes(8, "big") for i in ids)
            chosen |= {s[0]: fate for s, fate in zip(samples, decided, strict=True)}
    return chosen


def expected(samples: Sequence[tuple[int, Sample]]) -> dict[int, int]:
    """The rules, word by word, for samples given with their generation."""
    fate: dict[int, int] = {}
    order = sorted(samples, key=lambda s: (s[0], s[1][0]))
    for column, reason in ((1, EXACT), (2, PERCEPTUAL)):
        seen: set[int] = set()
        for _, sample in order:
            value = sample[column]
            if sample[0] in fate or not isinstance(value, int):
                continue
            if value in seen:
                fate[sample[0]] = reason
            seen.add(value)
    alive = [(retry, s) for retry, s in order if s[0] not in fate]
    for retry, sample in alive:
        group, grown = {sample[0]}, True
        bands = set(sample[3])
        while grown:
            more = {s[0] for r, s in alive if r <= retry and bands & set(s[3])}
            grown = not more <= group
            group |= more
            bands |= {b for r, s in alive if s[0] in group for b in s[3]}
        first = next(s[0] for r, s in alive if s[0] in group)
        if first != sample[0]:
            fate[sample[0]] = NEAR
    return {s[0]: fate.get(s[0], KEEP) for _, s in samples}


HASHES = st.one_of(st.none(), st.sampled_from([0, 1, 2**64 - 1]))
SAMPLES = st.lists(
    st.tuples(
        st.integers(0, 2**64 - 1),
        st.integers(0, 8),
        st.sampled_from([0, 1, 2, 3, 2**64 - 1]),
        st.lists(st.integers(0, 12), max_size=3, unique=True).map(tuple),
    ),
    unique_by=lambda s: s[0],
    max_size=16,
)


@settings(deadline=None, max_examples=12)
@given(SAMPLES, st.lists(st.integers(0, 2), min_size=16, max_size=16), st.randoms(use_true_random=False))
def test_every_rule_keeps_the_first_of_each_group_in_any_order(samples, generations, random) -> None:  # type: ignore[no-untyped-def]
    marked = list(zip(generations, samples, strict=False))
    parts = [(g, [s for mark, s in marked if mark == g]) for g in range(3)]
    chosen = fates(parts)
    assert chosen == expected(marked)
    shuffled = [(g, random.sample(part, len(part))) for g, part in parts]
    assert fates([(g, part[cut]) for g, part in shuffled for cut in (slice(0, 2), slice(2, None))]) == chosen
    first = [(g, part) for g, part in parts if g == 0]
    assert fates(first) == {i: chosen[i] for _, part in first for i in (s[0] for s in part)}, "a retry changes nothing"


def test_a_long_chain_of_near_texts_is_one_group() -> None:
    chain: list[Sample] = [(n * 7919 % 1000, n, None, (n, n + 1)) for n in range(400)]
    chosen = fates([(0, chain)])
    assert [i for i, fate in chosen.items() if fate == KEEP] == [0]


def test_rules_that_are_off_drop_nothing() -> None:
    samples: list[Sample] = [(1, 5, 9, (3,)), (2, 5, 9, (3,))]
    off = SelectConfig(exact_duplicates=False)
    assert set(fates([(0, samples)], off).values()) == {KEEP}
    assert fates([(0, samples)], SelectConfig())[2] == EXACT
    assert fates([(0, samples)], off.model_copy(update={"perceptual_duplicates": True}))[2] == PERCEPTUAL
    assert fates([(0, samples)], off.model_copy(update={"near_duplicates": True}))[2] == NEAR


def test_equal_ids_are_refused_by_name() -> None:
    with pytest.raises(SourceError, match=r"source s: 2 samples have the key of another \(first id 0{15}30{15}7\)"):
        fates([(0, [(3, 1, None, ()), (4, 2, None, ()), (3, 3, None, ())]), (0, [(4, 3, None, ())])])


def test_nothing_is_left_on_the_disk(tmp_path: Path) -> None:
    with duplicates(ALL, tmp_path) as found:
        found.add(as_candidates([(1, 1, None, ())]))
        found.decide("s")
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())
