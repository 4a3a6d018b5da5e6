from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generation.modality import GenerationError, Modality, ModalityMachine, Phase
from model.processor.interleave import spans
from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, PAD, Vocabulary

V = Vocabulary(image_codes=8, text_start=20, size=300)
N = 4
PICTURE = [V.boi, *range(FIRST_IMAGE_CODE, FIRST_IMAGE_CODE + N), V.eoi]


def machine(prompts: list[list[int]], modality: Modality = "any", **limits: int) -> ModalityMachine:
    limits = {"max_text_tokens": 6, "max_images": 1} | limits
    return ModalityMachine(prompts, V, N, modality, **limits)  # type: ignore[arg-type]


def emit(m: ModalityMachine, rng: torch.Generator, rows: int) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in range(rows)]
    for _ in range(1000):
        if m.done:
            return out
        for _ in range(m.block()):
            allowed = m.allowed()
            tokens = torch.multinomial(allowed.float(), 1, generator=rng)[:, 0]
            m.advance(tokens)
            for row, token in zip(out, tokens.tolist(), strict=True):
                row.append(token)
    raise AssertionError("the machine does not end")


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["text", "image", "any"]),
    st.integers(1, 9),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(N + 4, 40)),
    st.lists(st.sampled_from([[BOS, 30], [BOS, *PICTURE, 31, V.eot], [BOS]]), min_size=1, max_size=4),
    st.integers(0, 2**31),
)
def test_whatever_is_drawn_is_well_formed(modality, text, images, context, prompts, seed):
    if context is not None and (modality == "image" and images) and max(map(len, prompts)) + N + 2 > context:
        return  # refused: see test_no_room
    m = ModalityMachine(prompts, V, N, modality, max_text_tokens=text, max_images=images, context=context)
    for prompt, reply in zip(prompts, emit(m, torch.Generator().manual_seed(seed), len(prompts)), strict=True):
        body = reply[: reply.index(PAD)] if PAD in reply else reply
        assert set(reply[len(body) :]) <= {PAD}
        found = spans(body, V, N)
        pictures = [s for s in found if s.kind == "image"]
        assert all(s.whole for s in pictures), body
        assert len(pictures) <= (0 if modality == "text" else images)
        assert [t for t in body if t in (EOS, V.eot)] == [t for t in body[-1:] if t in (EOS, V.eot)]
        written = sum(t >= V.text_start for t in body)
        assert written <= (0 if modality == "image" else text)
        if modality == "image" and context is None:
            assert len(pictures) == images
        if context is not None:
            assert len(prompt) + len(body) <= context or not body


def test_a_picture_is_begun_only_where_it_fits():
    fits = machine([[BOS, 30]], "any", max_text_tokens=99, max_images=9)
    assert fits.allowed()[0, V.boi]
    tight = ModalityMachine([[BOS, 30]], V, N, "any", max_text_tokens=99, max_images=9, context=2 + N + 1)
    assert not tight.allowed()[0, V.boi]
    assert tight.allowed()[0, 30]


def test_text_masks_every_image_and_control_id():
    allowed = machine([[BOS]], "text").allowed()[0].nonzero()[:, 0].tolist()
    assert allowed == [EOS, V.eot, *range(V.text_start, V.size)]


def test_block_runs_to_the_end_of_the_shortest_picture():
    m = machine([[BOS, V.boi], [BOS, V.boi, 4, 4]], "image")
    assert m.phase_B.tolist() == [Phase.CODES, Phase.CODES]
    assert m.block() == N - 2


def test_an_open_picture_is_completed():
    m = machine([[BOS, V.boi, 5, 6]], "image", max_images=1)
    (reply,) = emit(m, torch.Generator().manual_seed(0), 1)
    assert len(reply) == N - 2 + 1
    assert reply[-1] == V.eoi


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "does not begin with <s>"),
        ([30], "does not begin with <s>"),
        ([BOS, V.size], "the vocabulary has ids"),
        ([BOS, V.boi, 4, V.eoi, 30], "malformed picture"),
        ([BOS, 4, 5], "malformed picture"),
        ([BOS, V.boi, 4, 30], "malformed picture"),
        ([BOS, V.eoi], "malformed picture"),
    ],
)
def test_malformed_prompts_are_refused(prompt, says):
    with pytest.raises(GenerationError, match=says):
        machine([prompt])


def test_no_room():
    with pytest.raises(GenerationError, match="a picture needs 6 more"):
        ModalityMachine([[BOS] + [30] * 10], V, N, "image", max_text_tokens=1, max_images=1, context=12)
    with pytest.raises(GenerationError, match="ends inside a picture"):
        ModalityMachine([[BOS, V.boi, 4]], V, N, "image", max_text_tokens=1, max_images=1, context=5)


def test_unknown_modality():
    with pytest.raises(GenerationError, match="must be one of text, image, any"):
        machine([[BOS]], "sound")  # type: ignore[arg-type]


@given(st.lists(st.integers(0, V.size - 1), max_size=60))
def test_spans_cover_any_ids_without_gaps(tokens):
    found = spans(tokens, V, N)
    assert [s.start for s in found] == [0, *(s.stop for s in found)][: len(found)]
    assert (found[-1].stop if found else 0) == len(tokens)
    assert not any(a.kind == b.kind == "text" for a, b in pairwise(found))


def test_spans_of_a_document():
    got = spans([BOS, *PICTURE, 30, 31, EOS], V, N)
    assert [(s.kind, s.start, s.stop, s.whole) for s in got] == [
        ("control", 0, 1, True),
        ("image", 1, 7, True),
        ("text", 7, 9, True),
        ("control", 9, 10, True),
    ]
    assert not spans(PICTURE[:-1], V, N)[0].whole
