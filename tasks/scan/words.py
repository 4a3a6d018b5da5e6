"""Texts as words and n-grams, for what compares texts: benchmarks and near duplicates."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_ONE_BY_ONE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts without spaces between words (Thai, Lao, kana, Han): every character counts as a word."""
_WORD = re.compile(f"[{_ONE_BY_ONE}]|[^\\W_{_ONE_BY_ONE}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def words(text: str) -> list[str]:
    """The text's words, in order: compatibility forms unified, case folded, punctuation left out."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def word_hashes(found: Sequence[str]) -> Hashes:
    """(n,) 64-bit hashes of n words."""
    return np.fromiter(map(_word_hash, found), np.uint64, len(found))


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """(max(0, len - n + 1),) 64-bit hashes of every n words in a row, from the words' own."""
    count = len(hashes) - n + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for place in range(n):  # Horner's scheme, modulo 2^64
        total = total * _FACTOR + hashes[place : place + count]
    total ^= total >> np.uint64(32)
    total *= _FACTOR
    total ^= total >> np.uint64(29)
    return total


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
