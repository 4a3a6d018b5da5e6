"""Ids of pictures, and what modality an id is of. Shape suffixes: N ids, P pictures, C codes a picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infra.errors import StoreError
from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, PAD, Vocabulary

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


def token_fault(ids_N: Ids, vocabulary: Vocabulary, codes_per_image: int) -> str:
    """What is wrong with a document that came as ids, without the ``<s>`` and ``</s>`` around it; empty if nothing.

    Every begin of image must be followed by exactly ``codes_per_image`` codes and an end of image, and neither codes
    nor ends of images may stand elsewhere; ``<s>``, ``</s>`` and padding may stand nowhere.
    """
    if ids_N.size == 0:
        return "it has no ids"
    if (largest := int(ids_N.max())) >= vocabulary.size:
        return f"id {largest}: the vocabulary has {vocabulary.size} ids"
    if (control_N := np.isin(ids_N, (BOS, PAD, EOS))).any():
        at = int(control_N.argmax())
        return f"{vocabulary.name(int(ids_N[at]))} at place {at}: none may stand within a document"
    begins_P = np.flatnonzero(ids_N == vocabulary.boi)
    stop_P = begins_P + codes_per_image + 1
    for at in begins_P[stop_P >= len(ids_N)][:1]:
        return f"the picture at place {at} is cut off: {len(ids_N) - at} of its {codes_per_image + 2} ids are there"
    codes_PC = ids_N[begins_P[:, None] + np.arange(1, codes_per_image + 1)]
    whole_P = ((codes_PC >= FIRST_IMAGE_CODE) & (codes_PC < vocabulary.eoi)).all(1) & (ids_N[stop_P] == vocabulary.eoi)
    for at in begins_P[~whole_P][:1]:
        return f"the picture at place {at} is not {codes_per_image} codes between begin and end of image"
    image_N = is_image(ids_N, vocabulary)
    inside_N = np.zeros(len(ids_N) + 1, np.int32)
    np.add.at(inside_N, begins_P, 1)
    np.add.at(inside_N, stop_P + 1, -1)
    stray_N = image_N & (inside_N.cumsum()[:-1] == 0)
    if stray_N.any():
        at = int(stray_N.argmax())
        return f"{vocabulary.name(int(ids_N[at]))} at place {at} stands outside a picture"
    return ""
