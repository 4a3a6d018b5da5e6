"""A document store made of random documents of every kind, committed as the tokenize step would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.store.documents import DOCUMENTS
from infra.store.manifest import Rows
from infra.store.tables import write_table
from model.vocabulary import BOS, EOS, Vocabulary
from tasks.context import StepContext
from tasks.documents.ids import is_image, pack_bits
from tasks.mix.documents import Documents, load_documents
from tasks.pool import PartOutput, run_items
from tasks.recipe import Recipe, parse_recipe

V = Vocabulary(image_codes=16, text_start=32, size=600)
KINDS = {"emoji": "pairs", "text": "text", "stories": "interleaved", "quality": "pairs", "chat": "messages"}
RECIPE: dict[str, Any] = {
    "name": "t",
    "seed": 3,
    "vocabulary": V.model_dump(),
    "image_tokenizer": {"codes": 16, "resolution": 16, "multipliers": [1, 1, 1]},  # 16 codes: a picture is 18 tokens
    "sources": [{"name": name, "type": "x", "kind": kind} for name, kind in KINDS.items()],
    "mix": {
        "tokens": 60_000,
        "sequence_length": 64,
        "window": 300,
        "slice_sequences": 250,
        "file_sequences": 200,
        "held_out_sequences": 4,
        "stages": [
            {"name": "stage-1", "share": 0.8, "weights": {"emoji": 0.5, "text": 0.3, "stories": 0.2}},
            {"name": "stage-2", "share": 0.2, "weights": {"quality": 1, "chat": 1}, "earlier": 0.5},
        ],
    },
    "finetune_mix": {"sources": ["chat"], "weights": {"image-generation": 0.5}, "epochs": 2},
}


def picture(rng: np.random.Generator) -> np.ndarray:
    return np.array([V.boi, *rng.integers(4, 20, 16), V.eoi], np.uint16)


def words(rng: np.random.Generator, low: int, high: int) -> np.ndarray:
    return rng.integers(V.text_start, V.size, rng.integers(low, high)).astype(np.uint16)


def make_row(rng: np.random.Generator, source: str, held_out: bool) -> dict[str, Any]:
    kind = KINDS[source]
    row: dict[str, Any] = {"sample_id": rng.bytes(16), "kind": kind, "category": "", "held_out": held_out}
    row |= {"picture": b"", "captions": [], "tokens": b"", "loss": b""}
    if kind == "pairs":
        captions = [words(rng, 1, 12) for _ in range(rng.integers(1, 5))]
        row |= {"picture": picture(rng).tobytes(), "captions": [c.tobytes() for c in captions]}
        return row | {"lengths": [20 + len(c) for c in captions], "image_tokens": 18}
    if kind == "messages":
        drawn = rng.random() < 0.3
        prompt, answer = words(rng, 2, 10), picture(rng) if drawn else words(rng, 1, 15)
        if rng.random() < 0.05:
            answer = words(rng, 70, 90)  # does not fit a sequence
        ids = np.concatenate([[BOS], prompt, [V.eot], answer, [EOS]]).astype(np.uint16)
        bits = np.arange(len(ids)) > len(prompt) + 1
        row |= {"category": "image-generation" if drawn else "text", "loss": pack_bits(bits)}
    else:
        segments = [words(rng, 1, 40 if kind == "interleaved" else 150)]
        if kind == "interleaved":
            segments += [f(rng) for _ in range(rng.integers(0, 6)) for f in (picture, lambda r: words(r, 0, 9))]
        ids = np.concatenate([[BOS], *segments, [EOS]]).astype(np.uint16)
    return row | {"tokens": ids.tobytes(), "lengths": [len(ids)], "image_tokens": int(is_image(ids, V).sum())}


class Part:
    def __init__(self, source: str, number: int) -> None:
        self.source, self.number, self.part = source, number, f"{source}-{number:05d}"


class Tokenized:
    def __init__(self, context: StepContext) -> None:
        pass

    def process(self, item: Part) -> PartOutput:
        rng = np.random.default_rng([len(item.source), ord(item.source[0]), item.number])
        rows = [make_row(rng, item.source, rng.random() < 0.1) for _ in range(150)]
        table = write_table(rows, DOCUMENTS)
        return PartOutput(item.part, item.source, {f"{item.part}.parquet": table}, Rows(entered=150, out=150))


@pytest.fixture(scope="session")
def recipe_of() -> Callable[..., Recipe]:
    def make(**mix: Any) -> Recipe:
        finetune = mix.pop("finetune", {})
        changed = {"mix": RECIPE["mix"] | mix, "finetune_mix": RECIPE["finetune_mix"] | finetune}
        return parse_recipe(RECIPE | changed)

    return make


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory, recipe_of: Callable[..., Recipe]) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    context = StepContext(recipe_of(), str(folder), "tokenize")
    context.__dict__["fingerprints"] = {"tokenize": "tokenize-0123", "encode": "e", "text-tokenizer": "t"}
    parts = [Part(source, number) for source in KINDS for number in range(3)]
    context.finish(parts=run_items(context, parts, Tokenized, workers=0))
    return folder


@pytest.fixture
def context_of(workdir: Path, recipe_of: Callable[..., Recipe]) -> Callable[..., StepContext]:
    """A mix step over that store, with changed keys of the recipe's ``mix`` (and ``finetune=…``)."""

    def make(number: int = 0, **mix: Any) -> StepContext:
        context = StepContext(recipe_of(**mix), str(workdir), "mix", f"job-{number}")
        context.__dict__["fingerprints"] = {"tokenize": "tokenize-0123", "mix": f"mix-{number:08d}-0123"}
        return context

    return make


@pytest.fixture(scope="session")
def documents(workdir: Path, recipe_of: Callable[..., Recipe]) -> Documents:
    context = StepContext(recipe_of(), str(workdir), "mix")
    context.__dict__["fingerprints"] = {"tokenize": "tokenize-0123"}
    return load_documents(context.store("tokenize"), context.manifest("tokenize").parts, seed=3)
