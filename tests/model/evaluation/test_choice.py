from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.evaluation.choice import Accuracy, Question, accuracy, answer_scores, draw_choices
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer

SIZE = 300
CONFIG = TransformerConfig(dim=32, layers=2, heads=4, ffn=48, dropout=0)
IDS = st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=7).map(tuple)
IMAGE = st.lists(st.integers(4, 19), min_size=1, max_size=7).map(tuple)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(CONFIG, SIZE).initialise(0).eval()


def one_by_one(model: Transformer, question: Question, among: tuple[int, int]) -> list[float]:
    out = []
    for answer in question.answers:
        ids = [*question.prompt, *answer]
        log_p = model.logits(model(torch.tensor([ids])))[0][:, slice(*among)].log_softmax(-1)
        start = len(question.prompt)
        out.append(sum(float(log_p[start + i - 1, t - among[0]]) for i, t in enumerate(answer)))
    return out


@settings(max_examples=25, deadline=None)
@given(
    questions=st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=5),
    tokens=st.sampled_from([1, 40, 16384]),
)
def test_scores_equal_those_of_plain_forwards(model, questions, tokens):
    asked = [Question(p, tuple(a)) for p, a in questions]
    with torch.inference_mode():
        for got, q in zip(answer_scores(model, asked, tokens=tokens), asked, strict=True):
            assert got == pytest.approx(one_by_one(model, q, (0, SIZE)), abs=2e-4)


@settings(max_examples=15, deadline=None)
@given(prompt=IDS, answers=st.lists(IMAGE, min_size=1, max_size=3))
def test_scores_among_some_ids_are_normalised_over_them(model, prompt, answers):
    q = Question(prompt, tuple(answers))
    with torch.inference_mode():
        (got,) = answer_scores(model, [q], among=(4, 20))
        assert got == pytest.approx(one_by_one(model, q, (4, 20)), abs=2e-4)


def test_progress_and_empty_answers(model):
    seen: list[int] = []
    answer_scores(model, [Question((1,), ((2,), (3,)))] * 5, tokens=8, progress=seen.append)
    assert seen[-1] == 5
    assert seen == sorted(seen)
    with pytest.raises(ValueError, match="at least one id"):
        answer_scores(model, [Question((1,), ((),))])


def test_choices_are_seeded_and_have_distinct_names():
    keys = [f"name {i // 2}" for i in range(60)]
    drawn = draw_choices(keys, 10, seed=3)
    assert drawn == draw_choices(keys, 10, seed=3) != draw_choices(keys, 10, seed=4)
    for i, row in enumerate(drawn):
        assert row[0] == i
        assert len({keys[j] for j in row}) == 10
    with pytest.raises(ValueError, match="30 distinct names"):
        draw_choices(keys, 31, seed=0)


def test_accuracy_counts_ties_and_nan_as_wrong():
    got = accuracy([[0.0, -1.0], [-1.0, -1.0], [-2.0, -1.0], [math.nan, -1.0]])
    assert (got.right, got.asked, got.chance) == (1, 4, 0.5)


def test_wilson_interval():
    low, high = Accuracy(130, 200, 0.1).interval
    assert (low, high) == pytest.approx((0.5816, 0.7127), abs=1e-3)
    assert Accuracy(0, 20, 0.1).interval[0] == 0
    assert Accuracy(20, 20, 0.1).interval[1] == pytest.approx(1)
    assert math.isnan(Accuracy(0, 0, 0.1).share)
