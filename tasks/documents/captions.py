"""Pairs: which caption, and whether the picture or the caption comes first, by occurrence (paper, section 2.2).

Both follow from a hash of the sample's id and the seed alone, so that no choice is stored and none depends on the order
in which documents are made. Half of all pairs begin with the picture; the same pair is turned round at its next use,
and its captions take turns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from model.vocabulary import BOS, EOS
from tasks.documents.ids import Ids


def draw(sample_id: bytes, seed: int) -> tuple[int, bool]:
    """A pair's own random numbers: 63 bits that choose the first caption, and whether occurrence 0 is picture first."""
    digest = hashlib.blake2b(sample_id + b"\0pair\0%d" % seed, digest_size=8).digest()
    bits = int.from_bytes(digest, "little")
    return bits >> 1, bool(bits & 1)


def image_first(sample_id: bytes, occurrence: int, seed: int) -> bool:
    """Whether the ``occurrence``-th use (from 0) of a pair begins with its picture: bit XOR (occurrence mod 2)."""
    return draw(sample_id, seed)[1] ^ bool(occurrence & 1)


def caption_number(sample_id: bytes, occurrence: int, seed: int, captions: int) -> int:
    """Which of the pair's captions the occurrence uses: (h + occurrence) mod captions."""
    return (draw(sample_id, seed)[0] + occurrence) % captions


def realise(row: Mapping[str, Any], occurrence: int, seed: int) -> Ids:
    """The ids of a document-store row's ``occurrence``-th use, (N,) uint16; rows that are not pairs never change."""
    if row["kind"] != "pairs":
        return np.frombuffer(row["tokens"], "<u2")
    sample_id, captions = row["sample_id"], row["captions"]
    picture = np.frombuffer(row["picture"], "<u2")
    caption = np.frombuffer(captions[caption_number(sample_id, occurrence, seed, len(captions))], "<u2")
    middle = (picture, caption) if image_first(sample_id, occurrence, seed) else (caption, picture)
    return np.concatenate([[BOS], *middle, [EOS]]).astype(np.uint16)
