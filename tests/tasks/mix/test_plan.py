from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import RecipeError
from tasks.mix.config import MixConfig, StageConfig
from tasks.mix.shares import hold_image_share, largest_remainder, normalised, stage_shares

weights_of = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.001, 1000), min_size=1)


@given(st.integers(0, 10**13), weights_of)
def test_quotas_sum_up_and_are_within_one_of_their_share(total: int, weights: dict[str, float]) -> None:
    quotas = largest_remainder(total, weights)
    assert sum(quotas.values()) == total
    for name, share in normalised(weights).items():
        assert abs(quotas[name] - share * total) < 1


def test_the_largest_remainders_are_served_and_ties_in_order() -> None:
    assert largest_remainder(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert largest_remainder(10, {"a": 50, "b": 26, "c": 24}) == {"a": 5, "b": 3, "c": 2}
    assert largest_remainder(7, {"a": 2, "nought": 0}) == {"a": 7}


PAPER = MixConfig.model_validate(
    {
        "tokens": 9_200_000_000_000,
        "stages": [
            {"name": "one", "share": 0.8, "weights": {"text": 2.9, "pairs": 1.5, "interleaved": 0.4}},
            {"name": "two", "share": 0.2, "earlier": 0.5, "weights": {"good": 1, "books": 1, "sft": 1}}
            | {"hold_image_share": True},
        ],
    }
)
IMAGES = {"text": 0.0, "pairs": 0.96, "interleaved": 0.5, "good": 0.95, "books": 0.0, "sft": 0.3}


def test_the_papers_mixture() -> None:
    one, two = stage_shares(PAPER, IMAGES)
    assert one == {"text": Fraction(2.9) / T, "pairs": Fraction(1.5) / T, "interleaved": Fraction(0.4) / T}
    assert all(two[name] == share / 2 for name, share in one.items())  # half its weight, in its own proportions
    assert sum(two.values()) == 1
    before, after = (sum(float(s) * IMAGES[n] for n, s in stage.items()) for stage in (one, two))
    assert after == pytest.approx(before, abs=1e-8)
    quotas = largest_remainder(PAPER.tokens * 4 // 5, one)
    assert quotas["text"] == pytest.approx(7.36e12 * 2.9 / 4.8, abs=1)


T = Fraction(2.9) + Fraction(1.5) + Fraction(0.4)


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 1)), min_size=2, max_size=6),
    st.floats(0.05, 0.95),
)
def test_solved_weights_reach_the_share_and_tilt_one_way(sources: list[tuple[float, float]], at: float) -> None:
    images = {str(i): image for i, (_, image) in enumerate(sources)}
    low, high = min(images.values()), max(images.values())
    target = low + at * (high - low)
    weights = normalised({str(i): weight for i, (weight, _) in enumerate(sources)})
    if high - low < 0.01:
        return
    stage = StageConfig(name="two", share=0.2, weights={"a": 1})
    solved = hold_image_share(stage, weights, images, target)
    assert sum(solved.values()) == 1
    assert sum(float(share) * images[name] for name, share in solved.items()) == pytest.approx(target, abs=1e-6)
    by_image = sorted(solved, key=lambda n: images[n])
    tilt = [float(solved[n] / weights[n]) for n in by_image]
    rises = sum(float(s) * images[n] for n, s in weights.items()) < target
    ordered = sorted(tilt, reverse=not rises)
    assert tilt == pytest.approx(ordered, rel=1e-5, abs=1e-7)


def test_weights_that_hold_it_already_stay() -> None:
    stage = StageConfig(name="two", share=0.2, weights={"a": 1})
    weights = normalised({"a": 1, "b": 3})
    assert hold_image_share(stage, weights, {"a": 0.2, "b": 0.6}, 0.5) == weights


def test_an_impossible_share_names_the_stage_the_reach_and_the_nearest_weights() -> None:
    stage = StageConfig(name="two", share=0.2, weights={"a": 1})
    weights = normalised({"a": 1, "b": 3})
    with pytest.raises(
        RecipeError, match=r"stages\.two\.hold_image_share.*70\.00%.*a 20\.0%, b 60\.0%.*\{b: 1\}.*more"
    ):
        hold_image_share(stage, weights, {"a": 0.2, "b": 0.6}, 0.7)
    with pytest.raises(RecipeError, match=r"\{a: 1\}.*fewer"):
        hold_image_share(stage, weights, {"a": 0.2, "b": 0.6}, 0.1)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"name": "a", "share": 0.5, "weights": {"x": 1}}], "sum to 0.5"),
        ([{"name": "a", "share": 1}], "at least one source"),
        ([{"name": "a", "share": 1, "weights": {"x": 0}}], "at least one source"),
        ([{"name": "a", "share": 1, "weights": {"x": -1}}], "greater than or equal to 0"),
        ([{"name": "a", "share": 1, "weights": {"x": 1}, "earlier": 0.5}], "no earlier sources"),
        ([{"name": "a", "share": 1, "weights": {"x": 1}, "hold_image_share": True}], "no earlier sources"),
        ([{"name": "a", "share": 0.5, "weights": {"x": 1}}] * 2, "same name"),
        ([], "at least 1 item"),
    ],
)
def test_contradictory_stages_are_refused(stages: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixConfig.model_validate({"tokens": 10, "stages": stages})
