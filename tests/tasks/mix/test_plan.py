from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import RecipeError
from infra.store.plan import Interval
from tasks.mix.config import FinetuneMixConfig, MixConfig, StageConfig
from tasks.mix.group import Group
from tasks.mix.plan import Supply, finetune_intervals, outline
from tasks.mix.shares import hold_image_share, largest_remainder, normalised, stage_shares
from tasks.mix.streams import Stream

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


def mixture(later: dict[str, object], tokens: int = 5000, **more: object) -> MixConfig:
    first = {"name": "one", "share": 0.8, "weights": {"a": 1, "b": 1}}
    return MixConfig.model_validate({"tokens": tokens, "stages": [first, {"name": "two", "share": 0.2} | later]} | more)


SUPPLIES = {"a": Supply(100, 10_000, 0), "b": Supply(100, 10_000, 9000), "c": Supply(100, 10_000, 9500)}


@pytest.mark.parametrize("weights", [{"b": 1, "c": 1}, {"b": 3, "c": 0.1}, {"c": 7}])
def test_an_impossible_share_names_the_stage_the_reach_and_a_plan_that_is_feasible(weights: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=r"stages\.two\.hold_image_share.*45\.00%.*c 95\.0%.*nearest feasible") as no:
        outline(mixture({"earlier": 0.5, "weights": weights, "hold_image_share": True}), SUPPLIES)
    found = re.search(r"with (\w): ([\d.]+) more in weights", str(no.value))
    assert found is not None
    enough = 5_000_000  # for a document of each
    taken = weights | {found[1]: weights.get(found[1], 0) + float(found[2])}
    later = {"earlier": 0.5, "weights": taken, "hold_image_share": True}
    two = outline(mixture(later, enough), SUPPLIES).stages()["two"]
    assert sum(q.share * SUPPLIES[q.source].image_share for q in two) == pytest.approx(0.45, abs=1e-6)


def test_where_no_source_is_on_the_other_side_the_plan_says_so() -> None:
    stage = StageConfig(name="two", share=0.2, weights={"a": 1, "b": 3}, hold_image_share=True)
    weights, images = normalised({"a": 1, "b": 3}), {"a": 0.2, "b": 0.6}
    with pytest.raises(RecipeError, match=r"70\.00%.*hold_image_share: false and weights \{a: 1, b: 3\}.*50\.00%"):
        hold_image_share(stage, weights, images, 0.7)
    with pytest.raises(RecipeError, match=r"with weights \{a: 1\}, which give 20\.00%"):
        hold_image_share(stage, weights, images, 0.2)


def test_a_stage_of_earlier_sources_alone_holds_the_share_already() -> None:
    two = outline(mixture({"earlier": 1, "hold_image_share": True}), SUPPLIES).stages()["two"]
    assert {q.source: q.tokens for q in two} == {"a": 500, "b": 500}


def finetuning(weights: dict[str, float], answers: dict[str, int]) -> list[list[Interval]]:
    def stream(name: str, answer_tokens: int) -> Stream:
        totals = {"documents": 1, "image_tokens": 0, "answer_tokens": answer_tokens, "sums": {"1": [99]}}
        return Stream(name, name, [("part", totals)], _no_group, 0)

    config = FinetuneMixConfig(sources=("chat",), weights=weights)
    return finetune_intervals(config, {name: stream(name, count) for name, count in answers.items()})


def _no_group(part: str) -> Group:
    raise AssertionError(part)


@pytest.mark.parametrize(
    ("weights", "answers", "message"),
    [
        ({"a": 0}, {"a": 50}, r"finetune_mix\.weights: every category weighs 0.*there are: a"),
        ({"a": 0, "b": 0}, {"a": 50, "b": 7}, "every category weighs 0"),
        ({"a": 0}, {"a": 50, "b": 0}, "every category weighs 0"),
        ({"b": 1}, {"a": 50, "b": 0}, r"finetune_mix\.weights\.b: category 'b' has no answer tokens.*of: a 50"),
        ({"b": 1}, {"b": 0}, r"finetune_mix\.weights\.b: .* no answer tokens"),
        ({}, {"b": 0}, r"finetune_mix\.sources: chat have no answer tokens"),
    ],
)
def test_fine_tuning_on_nothing_is_refused(weights: dict[str, float], answers: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        finetuning(weights, answers)


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
        ([{"name": "a", "share": 1, "weights": {"x": float("inf")}}], "finite number"),
        ([{"name": "epoch-0", "share": 1, "weights": {"x": 1}}], "'epoch-0' is the name of a packing"),
        ([{"name": "held-out-x", "share": 1, "weights": {"x": 1}}], "'held-out-x' is the name of a packing"),
    ],
)
def test_contradictory_stages_are_refused(stages: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixConfig.model_validate({"tokens": 10, "stages": stages})


def test_an_endless_limit_of_passes_is_refused() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        mixture({"weights": {"c": 1}}, max_passes=float("inf"))
