"""Benchmark decontamination: samples that quote an item of a listed set, by n-grams of normalised words.

As in GPT-3's report (arXiv 2005.14165, appendix C), 13 words in a row by default. An n-gram is kept as a 64-bit hash,
sorted: 8 bytes each. Items shorter than that are looked for whole.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.errors import SourceError
from tasks.scan.config import BenchmarkConfig
from tasks.scan.inputs import file_bytes
from tasks.scan.words import Hashes, ngrams, word_hashes, words


@dataclass(frozen=True)
class Benchmark:
    """One set's n-grams."""

    config: BenchmarkConfig
    grams: Hashes
    """Hashes of ``ngram`` words, sorted."""
    short: dict[int, Hashes]
    """Hashes of whole items by their number of words, where that is below ``ngram``; sorted."""

    @classmethod
    def load(cls, config: BenchmarkConfig, folder: str | Path) -> Benchmark:
        """Reads the set; SourceError names file, line and field where it cannot, and a set without any text."""
        return cls.of(config, _texts(config, file_bytes(config.path, folder, f"scan.benchmarks.{config.name}.path")))

    @classmethod
    def of(cls, config: BenchmarkConfig, texts: Iterable[str]) -> Benchmark:
        """The set of some texts."""
        grams: list[Hashes] = []
        short: dict[int, list[Hashes]] = {}
        for text in texts:
            hashes = word_hashes(words(text))
            if len(hashes) >= config.ngram:
                grams.append(ngrams(hashes, config.ngram))
            elif len(hashes) >= config.min_words:
                short.setdefault(len(hashes), []).append(ngrams(hashes, len(hashes)))
        if not grams and not short:
            raise SourceError(
                f"benchmark {config.name} ({config.path}): no text of {config.min_words} words or more; "
                f"fields are {', '.join(config.fields) if config.fields else 'all'}. Correct scan.benchmarks."
            )
        return cls(config, _sorted(grams), {length: _sorted(found) for length, found in sorted(short.items())})

    def quoted_in(self, texts: Sequence[Hashes]) -> bool:
        """Whether a sample, given as the word hashes of each of its texts, quotes the set."""
        hits: set[int] = set()
        total = 0
        for hashes in texts:
            for length, items in self.short.items():
                if len(hashes) >= length and _common(ngrams(hashes, length), items).any():
                    return True
            grams = ngrams(hashes, self.config.ngram)
            total += len(grams)
            hits.update(grams[_common(grams, self.grams)].tolist())
        least = self.config.min_overlap
        return bool(hits) and len(hits) >= (least if least >= 1 else least * total)


def quoted(benchmarks: Sequence[Benchmark], texts: Sequence[str]) -> str:
    """The name of the first benchmark that the texts quote; empty if there is none."""
    hashes = [word_hashes(words(text)) for text in texts]
    return next((b.config.name for b in benchmarks if b.quoted_in(hashes)), "")


def _common(grams: Hashes, known: Hashes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(len(grams),) which of them are among the known ones."""
    places = np.minimum(np.searchsorted(known, grams), max(len(known) - 1, 0))
    return known[places] == grams if len(known) else np.zeros(len(grams), bool)


def _sorted(found: Sequence[Hashes]) -> Hashes:
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)


def _texts(config: BenchmarkConfig, data: bytes) -> Iterator[str]:
    name = config.path
    if name.endswith(".gz"):
        name = name.removesuffix(".gz")
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as e:
            raise SourceError(f"{config.path}: not a whole gzip file ({e}); correct scan.benchmarks") from e
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8-sig")
            yield from _fields(config, json.loads(text)) if name.endswith((".jsonl", ".ndjson")) else [text]
        except (ValueError, KeyError) as e:
            raise SourceError(
                f"{config.path}:{number}: {e}; expected {'an object with its fields' if '.json' in name else 'UTF-8'}. "
                f"Correct the file or scan.benchmarks.{config.name}."
            ) from e


def _fields(config: BenchmarkConfig, row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        raise ValueError("the line is not a JSON object")
    for name in row if config.fields is None else config.fields:
        if name not in row:
            raise ValueError(f"no field {name!r}, only {', '.join(map(repr, row))}")
        value = row[name]
        yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))
