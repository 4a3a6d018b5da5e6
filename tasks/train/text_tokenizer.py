"""Step ``text-tokenizer``: a deterministic, weighted sample of the training texts, and SentencePiece on it.

A source's share of the sample is bounded by what it has; what it leaves goes to the others. Of a large source only as
many work items are read, in seeded order, as hold a few times its share; of their texts each is taken or not by a hash.
Held-out samples are never trained on: the figures of the manifest are measured on them. Where the recipe names a file,
that tokenizer is checked and imported instead, and texts are read for the figures alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import PurePath
from typing import Any

from infra.errors import SourceError
from infra.store.commit import entry, load_part
from model.text_tokenizer.codec import TextTokenizer
from model.text_tokenizer.importing import import_tokenizer
from model.text_tokenizer.train import cut, train
from tasks.context import StepContext
from tasks.fingerprint import imported_fingerprint
from tasks.scan.inputs import file_bytes
from tasks.scan.languages import Languages
from tasks.scan.selected import selected, work_items
from tasks.sources.base import RawSample, WorkItem
from tasks.steps import BY_NAME
from tasks.train.fertility import HeldOut, measure

OVERSAMPLE = 4
"""Texts read for each that is taken, where a source has so many: one work item may be unlike the others."""
IMPORTED_BYTES = 50_000_000
"""Text read, over all sources, to measure an imported tokenizer on what of it is held out."""


@dataclass(slots=True)
class Sample:
    """The texts to train on, one by one, and what was seen on the way."""

    context: StepContext
    plan: Sequence[tuple[WorkItem, float]]
    """Work items in reading order, each with the share of its texts to take."""
    total: int
    held_out: HeldOut
    taken: Counter[str] = field(default_factory=Counter)
    """Bytes by source."""

    def __iter__(self) -> Iterator[str]:
        seed, max_bytes = self.context.recipe.seed, self.context.recipe.text_tokenizer.max_sentence_bytes
        for item, rate in self.plan:
            for raw, row in selected(self.context, item):
                if row.held_out:
                    for text in texts_of(raw):
                        self.held_out.add(item.source, text, raw.category)
                    continue
                # By the sentence, not by the text: one book would be a fifth of a small sample, or missing from it.
                for number, text in enumerate(s for whole in texts_of(raw) for s in cut(whole, max_bytes)):
                    if is_taken(row.sample_id, number, rate, seed):
                        self.taken[item.source] += len(text.encode())
                        yield text
            self.context.progress.update(sum(self.taken.values()), self.total, "bytes", note=f"reading {item.source}")


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


def _imported(context: StepContext, file: str) -> tuple[TextTokenizer, dict[str, Any]]:
    """The recipe's tokenizer file, if it is still the one that the step's address speaks of, and facts about it."""
    recipe = context.recipe
    data = file_bytes(file, recipe.folder, "text_tokenizer.file")
    digest = hashlib.sha256(data).hexdigest()
    inputs = {name: context.fingerprints[name] for name in BY_NAME[context.step].inputs}
    if imported_fingerprint(recipe, inputs, digest) != context.fingerprint:
        raise SourceError(
            f"{file}: the tokenizer changed after the run began. Run again: what it makes is another one."
        )
    tokenizer = import_tokenizer(data, file, recipe.vocabulary, lossy=recipe.text_tokenizer.lossy)
    return tokenizer, {"file": PurePath(file).name, "sha256": digest, "alters": list(tokenizer.alters)}


def run(context: StepContext) -> None:
    """Trains or imports the tokenizer and commits its two files."""
    recipe = context.recipe
    config, items = recipe.text_tokenizer, work_items(context)
    available = {i.part: int(load_part(context.store("scan"), i.part).facts["text_bytes"]) for i in items}
    by_source = dict.fromkeys((s.name for s in recipe.sources), 0)
    for item in items:
        by_source[item.source] += available[item.part]
    # What is measured of an imported tokenizer depends on no key that does not count in the step's address.
    quota = quotas(by_source, *((config.weights, config.sample_bytes) if config.file is None else ({}, IMPORTED_BYTES)))
    languages = Languages(recipe.scan.min_language_score, recipe.scan.language_chars)
    held_out = HeldOut(lambda text: languages.of([text]))
    sample = Sample(context, reading_plan(items, available, quota, recipe.seed), sum(quota.values()), held_out)
    made: dict[str, Any] = {}
    if config.file is None:
        tokenizer = train(sample, config, recipe.vocabulary)
        made["trained_on_bytes"] = dict(sorted(sample.taken.items()))
    else:
        tokenizer, made["imported"] = _imported(context, config.file)
        for _ in sample:  # which collects the held-out texts
            pass
    files = tokenizer.files()
    for name, data in sorted(files.items()):
        context.store().put(name, data)
    facts: dict[str, Any] = {
        **made,
        "pieces": tokenizer.pieces,
        "unused_ids": recipe.vocabulary.text_pieces - tokenizer.pieces,
        "fertility": measure(tokenizer, held_out.texts),
        "examples": [tokenizer.piece(recipe.vocabulary.text_start + n) for n in range(257, min(tokenizer.pieces, 297))],
    }
    context.progress.update(sample.total, sample.total, "bytes", note=f"{tokenizer.pieces:,} pieces", force=True)
    context.finish(files=[entry(name, data) for name, data in sorted(files.items())], facts=facts)
