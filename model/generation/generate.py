"""Generation: prompts in, text and pictures out, by the modality state machine.

Greedy or nucleus sampling with settings by modality, image guidance, batched and seeded. What a row yields depends on
its prompt and its seed, not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.generation.cache import Streams
from model.generation.config import GenerationConfig
from model.generation.modality import Modality, ModalityMachine
from model.generation.sample import RowRandom, sample
from model.processor.interleave import spans
from model.transformer.model import Transformer
from model.vocabulary import BOS, FIRST_IMAGE_CODE, Vocabulary


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of an answer: a text's ids (vocabulary ids) or a picture's codes (codebook indices, raster order)."""

    kind: Literal["text", "image"]
    ids: tuple[int, ...]


@torch.inference_mode()
def generate(
    model: Transformer,
    vocabulary: Vocabulary,
    codes_per_image: int,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    modality: Modality = "any",
    seeds: Sequence[int] | None = None,
    context: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Piece]]:
    """Answers to prompts.

    Args:
        model: A transformer in eval mode; its device and dtype are used.
        vocabulary: The shared vocabulary.
        codes_per_image: Codes of a picture.
        prompts: Ids from ``<s>`` on, usually ending in ``</s>``-free text, end of turn, or BOI and some codes of a
            picture that is then completed.
        config: Temperatures, top-p, guidance and limits.
        modality: ``text``, ``image`` or ``any``; what is not wanted is masked.
        seeds: One a row; None: 0, 1, 2, ….
        context: The model's context, prompt included; None: no limit.
        progress: Called with the number of steps done so far, now and then.

    Returns:
        For each prompt its pieces in order. A picture that the prompt began comes whole, with the prompt's codes.

    Raises:
        GenerationError: A malformed prompt, or no room for what was asked.
    """
    if not prompts:
        return []
    seeds = range(len(prompts)) if seeds is None else seeds
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds; one seed a prompt is needed")
    device = next(model.parameters()).device
    machine = ModalityMachine(
        prompts,
        vocabulary,
        codes_per_image,
        modality,
        max_text_tokens=config.max_text_tokens,
        max_images=config.max_images,
        context=context,
        device=device,
    )
    starts = [_reply_start(p, vocabulary, codes_per_image) for p in prompts]
    opened = any(start < len(p) for p, start in zip(prompts, starts, strict=True))
    guided = config.image_guidance != 1.0 and (modality != "text" or opened)
    twins = [[BOS, *p[s:]] for p, s in zip(prompts, starts, strict=True)] if guided else None
    limit = _most_steps(config, modality, codes_per_image, opened)
    if context is not None:
        limit = min(limit, context - min(map(len, prompts)))
    streams = Streams(model, prompts, twins, max(0, limit), vocabulary)
    random = RowRandom(seeds, device)
    emitted: list[Tensor] = []
    while not machine.done:
        for _ in range(machine.block()):
            logits_BV, unconditional_BV = streams.step(emitted[-1]) if emitted else streams.prefill()
            tokens_B = _draw(machine, logits_BV, unconditional_BV, config, random())
            machine.advance(tokens_B)
            emitted.append(tokens_B)
        if progress is not None:
            progress(len(emitted))
    replies = torch.stack(emitted, 1).tolist() if emitted else [[] for _ in prompts]
    return [
        split_pieces([*p[s:], *reply], vocabulary, codes_per_image)
        for p, s, reply in zip(prompts, starts, replies, strict=True)
    ]


def _draw(
    machine: ModalityMachine,
    logits_BV: Tensor,
    unconditional_BV: Tensor | None,
    config: GenerationConfig,
    uniform_B: Tensor,
) -> Tensor:
    """(B,) the next ids; ``<pad>`` for rows that have ended."""
    picture_B = machine.in_picture()
    if unconditional_BV is not None:
        guided_BV = unconditional_BV + config.image_guidance * (logits_BV - unconditional_BV)
        logits_BV = torch.where(picture_B[:, None], guided_BV, logits_BV)
    logits_BV = logits_BV.masked_fill(~machine.allowed(), -torch.inf)
    temperature_B = torch.where(picture_B, config.image_temperature, config.temperature)
    top_p_B = torch.where(picture_B, config.image_top_p, config.top_p)
    return sample(logits_BV, temperature_B, top_p_B, uniform_B)


def _most_steps(config: GenerationConfig, modality: Modality, codes_per_image: int, opened: bool) -> int:
    """An upper bound of the tokens a row can emit: its text, the text's end, and every picture."""
    text = 0 if modality == "image" else config.max_text_tokens + 1
    pictures = max(0 if modality == "text" else config.max_images, int(opened))
    return text + pictures * (codes_per_image + 2)


def _reply_start(prompt: Sequence[int], vocabulary: Vocabulary, codes_per_image: int) -> int:
    """Where the reply begins: at the BOI of a picture that the prompt leaves open, else after the prompt."""
    last = spans(prompt, vocabulary, codes_per_image)[-1]
    return last.start if last.kind == "image" and not last.whole else len(prompt)


def split_pieces(tokens: Sequence[int], vocabulary: Vocabulary, codes_per_image: int) -> list[Piece]:
    """Any ids as texts and pictures in order; control ids and damaged pictures are left out."""
    pieces = []
    for span in spans(tokens, vocabulary, codes_per_image):
        ids = tuple(tokens[span.start : span.stop])
        if span.kind == "text":
            pieces.append(Piece("text", ids))
        elif span.kind == "image" and span.whole:
            pieces.append(Piece("image", tuple(t - FIRST_IMAGE_CODE for t in ids[1:-1])))
    return pieces
