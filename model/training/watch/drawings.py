"""Pictures drawn while the transformer trains: captions in, codes out, and nothing that is trained notices.

Each worker draws its share of the captions with the weights that the optimizer has just moved, in evaluation mode and
with random numbers of generators of its own. So a training draws the same pictures after a restart, and its parameters
are the same bits whether it draws or not. ZeRO 3 is refused by the recipe: there every step of generation, one code of
a picture, would gather all parameters from all workers.

Shape letters: P pictures, N codes of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from model.generation.config import GenerationConfig
from model.generation.generate import generate
from model.training.watch.config import DrawingsConfig
from model.training.watch.sinks import Picture
from model.transformer.model import Transformer
from model.vocabulary import Vocabulary

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a picture is drawn for."""

    words: str
    """The caption."""
    ids: tuple[int, ...]
    """What the model is given, from ``<s>`` to BOI."""
    codes: tuple[int, ...]
    """The held-out picture that has this caption, as codebook indices."""


class Drawings:
    """Draws a sheet of pictures every few steps, and at the end. Made and asked by all ranks together.

    Args:
        prompts: At least one.
        vocabulary: The shared vocabulary.
        generation: Temperature, top-p and guidance of pictures.
        seed: The run's; what is drawn depends on it, the step and the prompt's number.
        show: Called on rank 0 with the step and the drawn codes, (P, N): makes a sheet of them.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        config: DrawingsConfig,
        vocabulary: Vocabulary,
        generation: GenerationConfig,
        seed: int,
        show: Callable[[int, Codes], Picture],
    ) -> None:
        self._prompts, self._every = prompts, config.every
        self._vocabulary, self._seed, self._show = vocabulary, seed, show
        self._generation = generation.model_copy(update={"max_images": 1})

    def sheet(self, engine: Any, transformer: Transformer, step: int, total: int) -> Picture | None:
        """The sheet after ``step`` of ``total`` steps, on rank 0; None elsewhere and in the steps between.

        Args:
            engine: DeepSpeed's, around a module that holds ``transformer``; not ZeRO 3.
        """
        if not self._every or (step % self._every and step != total):
            return None
        drawn_PN = self._draw(engine, transformer, step).cpu().numpy()
        return self._show(step, drawn_PN) if dist.get_rank() == 0 else None

    def _draw(self, engine: Any, transformer: Transformer, step: int) -> Tensor:
        """int64 (P, N), the same on all ranks."""
        drawn_PN = torch.zeros(len(self._prompts), len(self._prompts[0].codes), dtype=torch.int64, device=engine.device)
        mine = range(dist.get_rank(), len(drawn_PN), dist.get_world_size())
        with _evaluating(engine, transformer):
            replies = generate(
                transformer,
                self._vocabulary,
                drawn_PN.shape[1],
                [self._prompts[i].ids for i in mine],
                self._generation,
                modality="image",
                seeds=[(self._seed * 1_000_003 + step) * 1_000_003 + i for i in mine],
            )
        for i, (picture,) in zip(mine, replies, strict=True):
            drawn_PN[i] = torch.tensor(picture.ids)
        dist.all_reduce(drawn_PN)
        return drawn_PN


@contextmanager
def _evaluating(engine: Any, transformer: Transformer) -> Iterator[None]:
    """No dropout, nothing compiled for shapes that training never sees, and no norms for the step's line."""
    see, transformer.see = transformer.see, None
    engine.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        engine.train()
        transformer.see = see
