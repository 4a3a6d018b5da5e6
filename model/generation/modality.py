"""Which modality comes next: the state machine that turns a stream of ids into text and whole pictures.

A row is always in one phase::

    TEXT ──BOI──▶ CODES ──N-th code──▶ CLOSE ──EOI──▶ TEXT        (modality "text" never leaves TEXT,
      │                                                ▲            "image" starts and goes on in OPEN)
      └──</s>, end of turn, no budget──▶ DONE      OPEN ┘ (only BOI may follow)

The phase says which ids may be sampled; all others are masked. So a picture is always exactly N codes between BOI and
EOI, text never holds a code, and no control id but those four is ever produced (paper, section 2.4: each token's
modality decides how it is handled; other modalities are masked when only one is wanted).
The state of all rows is a handful of tensors, so that within a picture nothing has to be read back to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Literal, get_args

import torch
from torch import Tensor

from infra.errors import CalummaError
from model.processor.interleave import spans
from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, PAD, Vocabulary

Modality = Literal["text", "image", "any"]
MODALITIES: tuple[str, ...] = get_args(Modality)


class GenerationError(CalummaError):
    """What was asked of generation cannot be done: a modality, a prompt or a length."""


class Phase(IntEnum):
    """What a row may emit next. The value is its row in :meth:`ModalityMachine.allowed`'s table."""

    TEXT = 0
    """Text, or an end."""
    TEXT_OR_OPEN = 1
    """Text, an end, or BOI."""
    OPEN = 2
    CODES = 3
    CLOSE = 4
    DONE = 5
    """Only ``<pad>``, which nobody reads."""


class ModalityMachine:
    """The phases of a batch of rows.

    Args:
        prompts: The prompts' ids, one list a row. A prompt may end inside a picture, which is then completed.
        vocabulary: The shared vocabulary.
        codes_per_image: N, the codes of a picture.
        modality: ``text``, ``image`` (nothing but ``max_images`` pictures) or ``any``.
        max_text_tokens: Text tokens after which a row ends.
        max_images: Pictures that a row may yield.
        context: Tokens that a row may have, prompt included; None: no limit. A picture that would not fit is not begun.
        device: Where the state lives.

    Raises:
        GenerationError: An unknown modality, an empty or malformed prompt, or no room for what was asked.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        vocabulary: Vocabulary,
        codes_per_image: int,
        modality: Modality,
        *,
        max_text_tokens: int,
        max_images: int,
        context: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if modality not in MODALITIES:
            raise GenerationError(f"modality is {modality!r}; it must be one of {', '.join(MODALITIES)}")
        self._vocabulary, self._n, self._modality = vocabulary, codes_per_image, modality
        open_codes = [_open_codes(p, vocabulary, codes_per_image, row) for row, p in enumerate(prompts)]
        longest = max(map(len, prompts), default=0)
        room = [(context if context is not None else longest + 2**30) - len(p) for p in prompts]

        def state(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        self._codes_left_B = state([0 if k is None else codes_per_image - k for k in open_codes])
        self._text_left_B = state([max_text_tokens if modality != "image" else 0] * len(prompts))
        # A picture that the prompt left open is the first of those that the row may yield.
        begun = [int(k is not None) for k in open_codes]
        self._images_left_B = state([max(0, max_images - b) if modality != "text" else 0 for b in begun])
        self._room_B = state(room)
        self._table_PV = _table(vocabulary, device)
        self.phase_B = torch.where(
            state([k is not None for k in open_codes]).bool(),
            torch.where(self._codes_left_B > 0, Phase.CODES, Phase.CLOSE),
            self._between_pictures(),
        )
        for row, k in enumerate(open_codes):
            if k is not None and room[row] < codes_per_image - k + 1:
                raise GenerationError(
                    f"prompt {row} ends inside a picture and leaves room for {room[row]} tokens of {context}; "
                    f"its remaining {codes_per_image - k} codes and <eoss> need {codes_per_image - k + 1}"
                )
            if k is None and modality == "image" and max_images and room[row] < codes_per_image + 2:
                raise GenerationError(
                    f"prompt {row} has {len(prompts[row])} tokens of {context}; a picture needs {codes_per_image + 2} "
                    "more. Shorten the prompt."
                )

    @property
    def done(self) -> bool:
        """Whether every row has ended (one read from the device)."""
        return bool((self.phase_B == Phase.DONE).all())

    def allowed(self) -> Tensor:
        """(B, V) bool: the ids that each row may emit next."""
        return self._table_PV[self.phase_B]

    def in_picture(self) -> Tensor:
        """(B,) bool: rows whose next id is a picture code."""
        return self.phase_B == Phase.CODES

    def block(self) -> int:
        """Steps for which every row's phase follows without looking at a token; at least 1 (one read from the device).

        While all live rows are inside pictures the loop can run this long without waiting for the device.
        """
        left_B = torch.where(self.in_picture(), self._codes_left_B, 1)
        left_B = torch.where(self.phase_B == Phase.DONE, self._n, left_B)
        return max(1, int(left_B.min())) if left_B.numel() else 1

    def advance(self, tokens_B: Tensor) -> None:
        """Moves every row on by the id that it emitted, which must have been allowed."""
        live_B = self.phase_B != Phase.DONE
        in_text_B = (self.phase_B == Phase.TEXT) | (self.phase_B == Phase.TEXT_OR_OPEN)
        opened_B = tokens_B == self._vocabulary.boi
        self._room_B = self._room_B - live_B.long()
        self._text_left_B = self._text_left_B - (in_text_B & ~opened_B).long()
        self._images_left_B = self._images_left_B - opened_B.long()
        self._codes_left_B = torch.where(opened_B, self._n, self._codes_left_B - self.in_picture().long())
        ended_B = ~live_B | (tokens_B == EOS) | (tokens_B == self._vocabulary.eot)
        inside_B = opened_B | self.in_picture()
        self.phase_B = torch.where(
            inside_B,
            torch.where(self._codes_left_B > 0, Phase.CODES, Phase.CLOSE),
            torch.where(ended_B, Phase.DONE, self._between_pictures()),
        )

    def _between_pictures(self) -> Tensor:
        """(B,) the phase of rows that stand between pictures and have not ended."""
        picture_B = (self._images_left_B > 0) & (self._room_B >= self._n + 2)
        if self._modality == "image":
            return torch.where(picture_B, Phase.OPEN, Phase.DONE)
        text_B = (self._text_left_B > 0) & (self._room_B > 0)
        return torch.where(text_B, torch.where(picture_B, Phase.TEXT_OR_OPEN, Phase.TEXT), Phase.DONE)


def _table(vocabulary: Vocabulary, device: torch.device | str) -> Tensor:
    """(phases, V) bool: the ids that each phase allows."""
    table_PV = torch.zeros(len(Phase), vocabulary.size, dtype=torch.bool, device=device)
    for phase in (Phase.TEXT, Phase.TEXT_OR_OPEN):
        table_PV[phase, vocabulary.text_start :] = True
        table_PV[phase, [EOS, vocabulary.eot]] = True
    table_PV[[Phase.TEXT_OR_OPEN, Phase.OPEN], vocabulary.boi] = True
    table_PV[Phase.CODES, FIRST_IMAGE_CODE : vocabulary.eoi] = True
    table_PV[Phase.CLOSE, vocabulary.eoi] = True
    table_PV[Phase.DONE, PAD] = True
    return table_PV


def _open_codes(prompt: Sequence[int], vocabulary: Vocabulary, codes_per_image: int, row: int) -> int | None:
    """Codes since the BOI of a picture that the prompt leaves open; None where it leaves none."""
    if not prompt or prompt[0] != BOS:
        raise GenerationError(f"prompt {row} does not begin with <s> (id {BOS})")
    bad = [t for t in prompt if not 0 <= t < vocabulary.size]
    if bad:
        raise GenerationError(f"prompt {row} holds id {bad[0]}; the vocabulary has ids 0 to {vocabulary.size - 1}")
    found = spans(prompt, vocabulary, codes_per_image)
    for span in found:
        if span.kind != "image" or span.whole:
            continue
        codes = span.stop - span.start - 1
        is_open = span.stop == len(prompt) and prompt[span.start] == vocabulary.boi and prompt[-1] != vocabulary.eoi
        if is_open and codes <= codes_per_image:
            return codes
        raise GenerationError(
            f"prompt {row} holds a malformed picture at tokens {span.start} to {span.stop - 1}; "
            f"a picture is BOI, {codes_per_image} codes, EOI"
        )
    return None
