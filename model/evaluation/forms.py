"""How a pair is put to a model: which ids ask for a name, which for a picture, and which are the answer.

The document form is that of pre-training: ``<s> BOI codes EOI name </s>`` and ``<s> name BOI codes EOI </s>``.
The chat form is that of fine-tuning: ``<s> BOI codes EOI question EOT name </s>`` and ``<s> request EOT BOI codes …``.
A picture's answer is its codes alone: BOI and EOI follow from asking for a picture, as in generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, Vocabulary

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and its name, as evaluation uses them."""

    key: str
    """The sample's id, hex."""
    name: str
    codes: Ids
    """Codebook indices, raster order."""


class Form(Protocol):
    """Turns pairs into prompts and answers."""

    def ask_name(self, pair: Pair) -> Ids:
        """The prompt that shows the pair's picture and wants its name."""
        ...

    def ask_picture(self, pair: Pair) -> Ids:
        """The prompt that gives the pair's name and wants its picture; ends in BOI."""
        ...

    def name(self, pair: Pair) -> Ids:
        """The name as an answer, with the id that ends it."""
        ...

    def picture(self, pair: Pair) -> Ids:
        """The picture as an answer: its codes' ids."""
        ...


@dataclass(frozen=True)
class DocumentForm:
    """A pair as in pre-training."""

    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]

    def ask_name(self, pair: Pair) -> Ids:
        return (BOS, *picture_ids(pair.codes, self.vocabulary))

    def ask_picture(self, pair: Pair) -> Ids:
        return (BOS, *self.encode(pair.name), self.vocabulary.boi)

    def name(self, pair: Pair) -> Ids:
        return (*self.encode(pair.name), EOS)

    def picture(self, pair: Pair) -> Ids:
        return tuple(c + FIRST_IMAGE_CODE for c in pair.codes)


@dataclass(frozen=True)
class ChatForm(DocumentForm):
    """A pair as a conversation's first turn: ``question`` is asked about a picture; ``request`` holds ``{name}``."""

    question: str
    request: str

    def ask_name(self, pair: Pair) -> Ids:
        picture = picture_ids(pair.codes, self.vocabulary)
        return (BOS, *picture, *self.encode(self.question), self.vocabulary.eot)

    def ask_picture(self, pair: Pair) -> Ids:
        request = self.encode(self.request.format(name=pair.name))
        return (BOS, *request, self.vocabulary.eot, self.vocabulary.boi)


def picture_ids(codes: Sequence[int], vocabulary: Vocabulary) -> Ids:
    """A whole picture: BOI, codes, EOI."""
    return (vocabulary.boi, *(c + FIRST_IMAGE_CODE for c in codes), vocabulary.eoi)
