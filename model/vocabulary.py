"""The one vocabulary that text and pictures share, at Chameleon's size or a smaller one of the same form.

Layout (ids, ascending); the numbers in brackets are Chameleon's::

    0 <s>   1 <pad>   2 </s>   3 <unk>
    4 … 3+image_codes                 image codes, id = code + 4            [4 … 8195]
    4+image_codes                     <eoss>, end of image (EOI)            [8196]
    5+image_codes                     <racm3:break>, begin of image (BOI)   [8197]
    6+image_codes … text_start-1      <reservedNNNNN>, id = NNNNN + 4       [8198 … 16383]
    text_start … size-1               text pieces                           [16384 … 65535]

Every layout fits uint16, which is what the document and sequence stores hold.
Text can never yield an id below ``text_start``: the text tokenizer knows no other pieces.
"""

from __future__ import annotations

from pydantic import model_validator

from infra.config import Config

BOS = 0
PAD = 1
EOS = 2
UNK = 3
FIRST_IMAGE_CODE = 4

_DIGIT_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")


class Vocabulary(Config):
    """Sizes of the shared vocabulary, and the ids that follow from them. The defaults are Chameleon's."""

    image_codes: int = 8192
    text_start: int = 16384
    size: int = 65536
    end_of_turn: int | None = None
    """The id between prompt and answer. None: 8710 in Chameleon's own layout, else the first reserved id."""

    @model_validator(mode="after")
    def _check(self) -> Vocabulary:
        if self.image_codes < 1:
            raise ValueError(f"image_codes is {self.image_codes}; it must be at least 1")
        first_free = FIRST_IMAGE_CODE + self.image_codes + 2
        if not first_free + 2 <= self.text_start:
            raise ValueError(
                f"text_start is {self.text_start}; with {self.image_codes} image codes it must be at least "
                f"{first_free + 2} (4 specials, the codes, <eoss>, <racm3:break>, two reserved ids)"
            )
        if not self.text_start + 259 < self.size <= 65536:
            raise ValueError(
                f"size is {self.size}; it must be above text_start + 259 = {self.text_start + 259} (256 byte pieces "
                "and SentencePiece's own three come first) and at most 65536, so that an id fits uint16"
            )
        if self.end_of_turn is not None and not first_free <= self.end_of_turn < self.text_start:
            raise ValueError(
                f"end_of_turn is {self.end_of_turn}; it must be a reserved id, {first_free} to {self.text_start - 1}"
            )
        return self

    @property
    def eoi(self) -> int:
        """End of image, ``<eoss>``."""
        return FIRST_IMAGE_CODE + self.image_codes

    @property
    def boi(self) -> int:
        """Begin of image, ``<racm3:break>``."""
        return self.eoi + 1

    @property
    def first_reserved(self) -> int:
        return self.boi + 1

    @property
    def eot(self) -> int:
        """End of turn: between a prompt and its answer."""
        if self.end_of_turn is not None:
            return self.end_of_turn
        return 8710 if self.image_codes == 8192 and self.text_start == 16384 else self.first_reserved

    @property
    def text_pieces(self) -> int:
        return self.size - self.text_start

    def is_image_code(self, token: int) -> bool:
        return FIRST_IMAGE_CODE <= token < self.eoi

    def name(self, token: int) -> str:
        """The released tokenizer's name of a control, image or reserved id; ``text[n]`` for the n-th text piece."""
        if not 0 <= token < self.size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.size}")
        if token < FIRST_IMAGE_CODE:
            return ("<s>", "<pad>", "</s>", "<unk>")[token]
        if token < self.eoi:
            return "IMGIMG" + str(token - FIRST_IMAGE_CODE).translate(_DIGIT_LETTERS) + "Z"
        if token == self.eoi:
            return "<eoss>"
        if token == self.boi:
            return "<racm3:break>"
        if token < self.text_start:
            return f"<reserved{token - FIRST_IMAGE_CODE:05d}>"
        return f"text[{token - self.text_start}]"
