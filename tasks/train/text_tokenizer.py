"""Step ``text-tokenizer``: a deterministic, weighted sample of the training texts, and SentencePiece on it.

A source's share of the sample is bounded by what it has; what it leaves goes to the others. Of a large source only as
many work items are read, in seeded order, as hold a few times its share; of their texts each is taken or not by a hash.
Held-out samples are never trained on: the figures of the manifest are measured on them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from infra.store.commit import entry, load_part
from model.text_tokenizer.codec import TextTokenizer
from model.text_tokenizer.train import cut, train
from tasks.context import StepContext
from tasks.scan.selected import selected, work_items
from tasks.sources.base import RawSample, WorkItem

OVERSAMPLE = 4
"""Texts read for each that is taken, where a source has so many: one work item may be unlike the others."""
MEASURED_BYTES = 200_000
"""Held-out text a source that the tokenizer is measured on."""


@dataclass(slots=True)
class Sample:
    """The texts to train on, one by one, and what was seen on the way."""

    context: StepContext
    plan: Sequence[tuple[WorkItem, float]]
    """Work items in reading order, each with the share of its texts to take."""
    total: int
    taken: Counter[str] = field(default_factory=Counter)
    """Bytes by source."""
    held_out: dict[str, list[str]] = field(default_factory=dict)
    _held_out_bytes: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[str]:
        seed, max_bytes = self.context.recipe.seed, self.context.recipe.text_tokenizer.max_sentence_bytes
        for item, rate in self.plan:
            for raw, row in selected(self.context, item):
                # By the sentence, not by the text: one book would be a fifth of a small sample, or missing from it.
                for number, text in enumerate(s for whole in texts_of(raw) for s in cut(whole, max_bytes)):
                    if row.held_out:
                        self._measure_on(item.source, text)
                    elif is_taken(row.sample_id, number, rate, seed):
                        self.taken[item.source] += len(text.encode())
                        yield text
            self.context.progress.update(sum(self.taken.values()), self.total, "bytes", note=f"reading {item.source}")

    def _measure_on(self, source: str, text: str) -> None:
        if self._held_out_bytes[source] < MEASURED_BYTES:
            self._held_out_bytes[source] += len(text.encode())
            self.held_out.setdefault(source, []).append(text)


def texts_of(sample: RawSample) -> Iterator[str]:
    """Every caption and every text segment, as the tokenizer will meet them."""
    yield from sample.captions
    yield from (s.text for s in sample.segments if s.text)


def quotas(available: Mapping[str, int], weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Bytes to take by source: shares of ``total`` by weight (1 where none is given), none above what there is.

    A source that has less than its share gives all, and the others share what it leaves, by weight.
    """
    open_sources = {s: Fraction(weights.get(s, 1.0)) for s in available if available[s] and weights.get(s, 1.0) > 0}
    found = dict.fromkeys(available, 0)
    left = min(total, sum(available[s] for s in open_sources))
    while open_sources:
        weight = sum(open_sources.values())
        full = [s for s, w in open_sources.items() if left * w >= available[s] * weight]
        if not full:
            return found | {s: int(left * w / weight) for s, w in open_sources.items()}
        for source in full:
            found[source] = available[source]
            left -= available[source]
            del open_sources[source]
    return found


def is_taken(sample_id: bytes, number: int, rate: float, seed: int) -> bool:
    """True for about ``rate`` of all sentences, by a hash of the sample, the sentence's number in it, and the seed."""
    place = hashlib.blake2b(sample_id + number.to_bytes(4, "little"), digest_size=8, key=f"text {seed}".encode())
    return int.from_bytes(place.digest(), "little") < rate * 2**64


def reading_plan(
    items: Sequence[WorkItem], available: Mapping[str, int], quota: Mapping[str, int], seed: int
) -> list[tuple[WorkItem, float]]:
    """Work items to read, source by source, with the share of their texts to take.

    Args:
        items: all work items.
        available: bytes of text by part.
        quota: bytes to take by source.
        seed: another seed reads other items first.
    """
    plan: list[tuple[WorkItem, float]] = []
    for source, wanted in quota.items():
        own = [item for item in items if item.source == source]
        own.sort(key=lambda item: hashlib.blake2b(f"{seed} {item.part}".encode()).digest())
        chosen: list[WorkItem] = []
        held = 0
        for item in own:
            if held >= OVERSAMPLE * wanted:
                break
            chosen.append(item)
            held += available[item.part]
        chosen.sort(key=lambda item: item.index)
        plan += [(item, wanted / held) for item in chosen if held]
    return plan


def measure(tokenizer: TextTokenizer, texts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """By source: bytes measured on, tokens a byte, bytes a token."""
    found = {}
    for source in sorted(texts):
        size = sum(len(t.encode()) for t in texts[source])
        tokens = sum(len(tokenizer.encode(t)) for t in texts[source])
        if tokens:
            found[source] = {
                "bytes": size,
                "tokens_per_byte": round(tokens / size, 4),
                "bytes_per_token": round(size / tokens, 3),
            }
    return found


def run(context: StepContext) -> None:
    """Trains the tokenizer and commits ``text.model`` and ``text.json``."""
    recipe = context.recipe
    config, items = recipe.text_tokenizer, work_items(context)
    available = {i.part: int(load_part(context.store("scan"), i.part).facts["text_bytes"]) for i in items}
    by_source = dict.fromkeys((s.name for s in recipe.sources), 0)
    for item in items:
        by_source[item.source] += available[item.part]
    quota = quotas(by_source, config.weights, config.sample_bytes)
    sample = Sample(context, reading_plan(items, available, quota, recipe.seed), sum(quota.values()))
    tokenizer = train(sample, config, recipe.vocabulary)
    files = tokenizer.files()
    for name, data in sorted(files.items()):
        context.store().put(name, data)
    facts: dict[str, Any] = {
        "pieces": tokenizer.pieces,
        "unused_ids": recipe.vocabulary.text_pieces - tokenizer.pieces,
        "trained_on_bytes": dict(sorted(sample.taken.items())),
        "held_out": measure(tokenizer, sample.held_out),
        "examples": [tokenizer.piece(recipe.vocabulary.text_start + n) for n in range(257, min(tokenizer.pieces, 297))],
    }
    context.progress.update(sample.total, sample.total, "bytes", note=f"{tokenizer.pieces:,} pieces", force=True)
    context.finish(files=[entry(name, data) for name, data in sorted(files.items())], facts=facts)
