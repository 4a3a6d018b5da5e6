"""The streams that a batch runs through the model: every row's own and, with guidance, its unconditional twin.

Classifier-free guidance for pictures needs the prediction without the prompt. Half of all pre-training pairs begin
``<s> BOI``, so exactly that is the unconditional context, and it is rebuilt for every picture. Both streams share one
batch and one cache: while a row stands outside a picture, its twin is fed ``<s>`` again and again, each as a document
of its own, so the one just before BOI is all that the picture's codes can see. Rows of unequal length are padded on
the left with document ``PADDING``, which nothing attends to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.transformer.attention import KVCache
from model.transformer.backends import PADDING
from model.transformer.model import Transformer
from model.vocabulary import BOS, FIRST_IMAGE_CODE, PAD, Vocabulary


class Streams:
    """Feeds a batch of rows to a transformer token by token.

    Args:
        model: In eval mode.
        prompts: The rows' prompts, ids from ``<s>`` on.
        unconditional: The twins' prompts (``<s>``, or ``<s> BOI codes…`` where a prompt ends inside a picture);
            None runs no twins.
        steps: Tokens that :meth:`step` may add.
        vocabulary: The shared vocabulary.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        unconditional: Sequence[Sequence[int]] | None,
        steps: int,
        vocabulary: Vocabulary,
    ) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._rows, self._guided = len(prompts), unconditional is not None
        weight = next(model.parameters())
        streams = [list(p) for p in prompts] + [list(p) for p in unconditional or ()]
        longest = max(map(len, streams))
        self._tokens = torch.tensor([[PAD] * (longest - len(s)) + s for s in streams], device=weight.device)
        lengths = torch.tensor([len(s) for s in streams], device=weight.device)
        # Negative where padded; rotary angles there are never used.
        self._positions = torch.arange(longest, device=weight.device) - (longest - lengths)[:, None]
        self._documents = torch.where(self._positions >= 0, 0, PADDING).int()
        self._cache = KVCache(model.config, len(streams), longest + steps, device=weight.device, dtype=weight.dtype)

    def prefill(self) -> tuple[Tensor, Tensor | None]:
        """Runs the prompts; the next id's logits (B, V), with the prompt and without it (None where not guided)."""
        return self._forward()

    def step(self, tokens_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Adds one token to every row; the logits (B, V) of the one after it, with the prompt and without it."""
        position = self._positions[:, -1:] + 1
        document = self._documents[:, -1:]
        tokens = tokens_B[:, None]
        if self._guided:
            v = self._vocabulary
            drawn_B1 = (tokens == v.boi) | ((tokens >= FIRST_IMAGE_CODE) & (tokens < v.eoi))
            own = slice(0, self._rows)
            twin = slice(self._rows, None)
            tokens = torch.cat((tokens, torch.where(drawn_B1, tokens, BOS)))
            position = torch.cat((position[own], torch.where(drawn_B1, position[twin], 0)))
            fresh = torch.full_like(document[twin], self._cache.position)
            document = torch.cat((document[own], torch.where(drawn_B1, document[twin], fresh)))
        self._tokens, self._positions, self._documents = tokens, position, document
        return self._forward()

    def _forward(self) -> tuple[Tensor, Tensor | None]:
        hidden_BTD = self._model(self._tokens, self._documents, self._positions, self._cache)
        logits = self._model.logits(hidden_BTD[:, -1])
        return logits[: self._rows], logits[self._rows :] if self._guided else None
