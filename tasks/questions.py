"""What evaluation asks about: pairs and conversations from the stores, in an order that depends on the seed alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from infra.errors import RecipeError
from infra.store.commit import PARTS, load_part
from infra.store.documents import DOCUMENTS
from infra.store.samples import SAMPLES
from infra.store.tables import read_table
from model.evaluation.forms import Pair
from tasks.context import StepContext

READ_AT_MOST = 100_000
"""Rows read to choose from; on larger data those of the first parts in a seeded order."""


def pairs_source(context: StepContext) -> str:
    """The source that evaluation asks about; RecipeError where there is none of kind pairs."""
    wanted = context.recipe.evaluation.source  # the recipe has checked its kind
    pairs = [s.name for s in context.recipe.sources if s.kind == "pairs"]
    if wanted is None and not pairs:
        raise RecipeError("evaluation asks about pairs of a picture and its name, and no source is of kind pairs")
    return wanted or pairs[0]


def read_pairs(context: StepContext, source: str) -> list[tuple[Pair, bool]]:
    """Pairs of a source and whether they are held out, in a seeded order. A pair's name is its first caption."""
    found = []
    for pairs in _pairs_by_part(context, source):
        found += pairs
        if len(found) >= READ_AT_MOST:
            break
    return sorted(found, key=lambda pair: _order(context.recipe.seed, pair[0].key))


def held_out_pairs(context: StepContext, source: str, accept: Callable[[Pair], bool], limit: int) -> list[Pair]:
    """Held-out pairs of different pictures that are accepted, in a seeded order; no more parts are read than needed."""
    found: dict[tuple[int, ...], Pair] = {}
    rows = 0
    for pairs in _pairs_by_part(context, source):
        own = (pair for pair, held_out in pairs if held_out and accept(pair))
        for pair in sorted(own, key=lambda pair: _order(context.recipe.seed, pair.key)):
            found.setdefault(pair.codes, pair)
        rows += len(pairs)
        if len(found) >= limit or rows >= READ_AT_MOST:
            break
    return list(found.values())[:limit]


def _pairs_by_part(context: StepContext, source: str) -> Iterator[list[tuple[Pair, bool]]]:
    columns = ["sample_id", "held_out", "captions", "images"]
    store = context.store("encode")
    for part in _seeded_parts(context, "encode", source):
        name = f"{PARTS}/{part}.parquet"
        pairs = []
        for row in read_table(store.get(name), SAMPLES, store.url(name), columns).to_pylist():
            if row["captions"] and row["images"]:
                codes = tuple(np.frombuffer(row["images"][0]["codes"], "<u2").tolist())
                pairs.append((Pair(row["sample_id"].hex(), row["captions"][0], codes), row["held_out"]))
        yield pairs


def read_conversations(context: StepContext, limit: int) -> Iterator[tuple[str, list[int]]]:
    """(category, ids) of held-out conversations, ``limit`` a category, in the order of the recipe's sources."""
    columns = ["sample_id", "category", "held_out", "tokens"]
    for source in context.recipe.finetune_mix.sources:
        counts: dict[str, int] = {}
        store = context.store("tokenize")
        rows = []
        for part in _seeded_parts(context, "tokenize", source):
            name = f"{PARTS}/{part}.parquet"
            table = read_table(store.get(name), DOCUMENTS, store.url(name), columns)
            rows += [r for r in table.to_pylist() if r["held_out"]]
            if len(rows) >= READ_AT_MOST:
                break
        for row in sorted(rows, key=lambda r: (r["category"], _order(context.recipe.seed, r["sample_id"].hex()))):
            counts[row["category"]] = counts.get(row["category"], 0) + 1
            if counts[row["category"]] <= limit:
                yield row["category"], np.frombuffer(row["tokens"], "<u2").tolist()


def _seeded_parts(context: StepContext, step: str, source: str) -> list[str]:
    store = context.store(step)
    parts = [p for p in context.manifest(step).parts if load_part(store, p).source == source]
    return sorted(parts, key=lambda part: _order(context.recipe.seed, part))


def _order(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
