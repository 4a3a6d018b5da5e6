from __future__ import annotations

import pytest
import torch

from model.generation.config import GenerationConfig
from model.generation.generate import generate
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer
from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, Vocabulary

V = Vocabulary(image_codes=16, text_start=30, size=320)
N = 9
PICTURE = [V.boi, *range(FIRST_IMAGE_CODE, FIRST_IMAGE_CODE + N), V.eoi]
PROMPTS = [[BOS, 40, 41, V.eot], [BOS, *PICTURE, 50, V.eot], [BOS, 60, V.eot]]


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = TransformerConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, dropout=0)
    model = Transformer(config, V.size).initialise(0).eval()
    with torch.no_grad():  # sharper than at initialisation, so that greedy choices are clear-cut
        model.lm_head.weight.mul_(4)
    return model


def naive(model: Transformer, prompt: list[int], steps: int, guidance: float) -> list[int]:
    """A picture by greedy steps that run everything from the start, without cache or batch."""
    picture = [V.boi]
    for _ in range(steps):
        full = model.logits(model(torch.tensor([prompt + picture])))[0, -1]
        free = model.logits(model(torch.tensor([[BOS, *picture]])))[0, -1]
        guided = free + guidance * (full - free)
        picture.append(FIRST_IMAGE_CODE + int(guided[FIRST_IMAGE_CODE : V.eoi].argmax()))
    return [t - FIRST_IMAGE_CODE for t in picture[1:]]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_pictures_equal_those_of_a_naive_loop(model, guidance):
    config = GenerationConfig(image_temperature=0, image_guidance=guidance, max_images=1)
    with torch.inference_mode():
        replies = generate(model, V, N, PROMPTS, config, modality="image")
        for prompt, reply in zip(PROMPTS, replies, strict=True):
            assert [p.kind for p in reply] == ["image"]
            assert list(reply[0].ids) == naive(model, prompt, N, guidance)


def test_every_picture_of_a_row_is_guided_afresh(model):
    """The second picture's unconditional context is <s> BOI, not the first picture."""
    config = GenerationConfig(image_temperature=0, image_guidance=2.5, max_images=2)
    with torch.inference_mode():
        (reply,) = generate(model, V, N, PROMPTS[:1], config, modality="image")
        first = [V.boi, *(FIRST_IMAGE_CODE + c for c in reply[0].ids), V.eoi]
        assert list(reply[1].ids) == naive(model, PROMPTS[0] + first, N, 2.5)


def test_text_equals_that_of_a_naive_loop(model):
    config = GenerationConfig(temperature=0, max_text_tokens=12)
    replies = generate(model, V, N, PROMPTS, config, modality="text")
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        text: list[int] = []
        with torch.inference_mode():
            while len(text) < 12:
                logits = model.logits(model(torch.tensor([prompt + text])))[0, -1]
                masked = torch.full_like(logits, -torch.inf)
                allowed = [EOS, V.eot, *range(V.text_start, V.size)]
                masked[allowed] = logits[allowed]
                token = int(masked.argmax())
                if token in (EOS, V.eot):
                    break
                text.append(token)
        assert [t for p in reply for t in p.ids] == text


def test_a_row_does_not_depend_on_its_neighbours(model):
    config = GenerationConfig(max_text_tokens=30, max_images=2, image_guidance=1.5)
    together = generate(model, V, N, PROMPTS, config, seeds=[7, 8, 9])
    for i, prompt in enumerate(PROMPTS):
        assert generate(model, V, N, [prompt], config, seeds=[7 + i]) == [together[i]]
    assert generate(model, V, N, PROMPTS[:1], config, seeds=[10])[0] != together[0]


def test_a_begun_picture_comes_back_whole(model):
    prompt = [BOS, 40, V.boi, FIRST_IMAGE_CODE + 3, FIRST_IMAGE_CODE + 5]
    config = GenerationConfig(image_temperature=0, image_guidance=2.0)
    (reply,) = generate(model, V, N, [prompt], config, modality="image")
    assert len(reply) == 1
    assert reply[0].ids[:2] == (3, 5)
    assert len(reply[0].ids) == N


def test_context_bounds_the_reply(model):
    config = GenerationConfig(max_text_tokens=500, max_images=20)
    for context in (14, 40):
        for reply in generate(model, V, N, PROMPTS, config, context=context):
            size = sum(len(p.ids) + 2 * (p.kind == "image") for p in reply)
            assert size <= context - 3
            assert all(len(p.ids) == N for p in reply if p.kind == "image")


def test_nothing_to_do(model):
    assert generate(model, V, N, [], GenerationConfig()) == []
    assert generate(model, V, N, [[BOS, 40]], GenerationConfig(max_images=0), modality="image") == [[]]
    with pytest.raises(ValueError, match="one seed a prompt"):
        generate(model, V, N, PROMPTS, GenerationConfig(), seeds=[1])
