"""Near-duplicate text: MinHash signatures cut into bands (Broder, 1997; Leskovec et al., Mining of Massive Datasets).

Two texts whose sets of word 5-grams have Jaccard similarity s share one of b bands of r rows with probability
1 - (1 - s^r)^b: with 14 bands of 8 that is 2% at 0.45, 50% at 0.69 and 99.9% at 0.9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tasks.scan.words import ngrams, word_hashes, words

BANDS, ROWS = 14, 8
NGRAM = 5
SEED = 1
_BLOCK = 4096
"""N-grams that are permuted at once: 1.8 MB."""


class NearText:
    """Computes a text's bands. The permutations are fixed: bands of any two runs can be compared."""

    @cached_property
    def _permutations(self) -> Any:
        from datasketch import MinHash  # here: it brings SciPy along

        return MinHash(BANDS * ROWS, SEED, scheme="affine32").permutations

    def bands(self, texts: Sequence[str]) -> tuple[int, ...]:
        """14 unsigned 64-bit hashes of all the texts together; none if they have fewer than 5 words."""
        from datasketch import MinHash

        grams = ngrams(word_hashes(words("\n".join(texts))), NGRAM)
        if not len(grams):
            return ()
        sketch = MinHash(BANDS * ROWS, SEED, hashfunc=int, permutations=self._permutations, scheme="affine32")
        low = (grams & 0xFFFFFFFF).tolist()
        for start in range(0, len(low), _BLOCK):
            sketch.update_batch(low[start : start + _BLOCK])
        rows = sketch.hashvalues.astype("<u4").reshape(BANDS, ROWS)
        return tuple(_band(number, row.tobytes()) for number, row in enumerate(rows))


def _band(number: int, values: bytes) -> int:
    digest = hashlib.blake2b(values, digest_size=8, key=number.to_bytes(1, "little"))
    return int.from_bytes(digest.digest(), "little")
