"""Ids of pictures, and what modality an id is of. Shape suffix: N ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infra.errors import StoreError
from model.vocabulary import FIRST_IMAGE_CODE, Vocabulary

Ids = npt.NDArray[np.uint16]

MODALITIES = ("text", "image", "control")


def picture_ids(codes: bytes, vocabulary: Vocabulary) -> Ids:
    """BOI, the codes as ids, EOI: (codes + 2,) uint16, from the sample store's little-endian codebook indices."""
    found = np.frombuffer(codes, "<u2")
    largest = int(found.max()) if found.size else 0
    if largest >= vocabulary.image_codes:
        raise StoreError(
            f"the sample store holds image code {largest}; vocabulary.image_codes is {vocabulary.image_codes}. "
            "The pictures were encoded with another codebook: run `encode` again with this recipe."
        )
    ids = np.empty(len(found) + 2, np.uint16)
    ids[0], ids[-1] = vocabulary.boi, vocabulary.eoi
    ids[1:-1] = found + FIRST_IMAGE_CODE
    return ids


def is_image(ids_N: Ids, vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
    """Which ids belong to pictures: BOI, codes, EOI. They are neighbours in the vocabulary: (N,) bool."""
    return (ids_N >= FIRST_IMAGE_CODE) & (ids_N <= vocabulary.boi)


def count_modalities(ids_N: Ids, vocabulary: Vocabulary) -> dict[str, int]:
    """How many ids are ``text``, ``image`` (BOI and EOI included) and ``control`` (``<s>``, ``</s>``, end of turn)."""
    image, text = int(is_image(ids_N, vocabulary).sum()), int((ids_N >= vocabulary.text_start).sum())
    return {"text": text, "image": image, "control": len(ids_N) - image - text}


def pack_bits(bits_N: npt.NDArray[np.bool_]) -> bytes:
    """A bit an id, least significant bit first."""
    return np.packbits(bits_N, bitorder="little").tobytes()


def unpack_bits(data: bytes, count: int) -> npt.NDArray[np.bool_]:
    """The reverse of :func:`pack_bits`, (count,) bool."""
    return np.unpackbits(np.frombuffer(data, np.uint8), count=count, bitorder="little").view(np.bool_)
