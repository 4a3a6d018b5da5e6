"""A document store made of random documents of every kind, committed as the tokenize step would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.store.commit import load_parts
from infra.store.documents import DOCUMENTS
from infra.store.manifest import Rows
from infra.store.plan import Plan
from infra.store.samples import SAMPLES
from infra.store.tables import read_table, write_table
from model.vocabulary import BOS, EOS, Vocabulary
from tasks.context import StepContext
from tasks.documents.ids import is_image, pack_bits
from tasks.mix.index import Indexer, IndexItem, load_group
from tasks.mix.packings import Streams
from tasks.pool import PartOutput, run_items
from tasks.recipe import Recipe, parse_recipe
from tests.tasks.mix.reading import Known, build

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


def make_sample(row: dict[str, Any]) -> dict[str, Any]:
    """The sample that a document was made of, as far as conditions look at it."""
    number = row["sample_id"][0]
    image = {"codes": b"", "width": 100 + number, "height": 80, "sha256": bytes(32), "phash": 0, "url": "", "faces": []}
    score = [] if number % 5 == 0 else [{"name": "aesthetic", "value": number / 256}]
    return {
        **{k: row[k] for k in ("sample_id", "kind", "category", "held_out")},
        **{"key": row["sample_id"].hex(), "file": "f", "row": 1, "licence": ("CC0", "unknown")[number % 2]},
        **{"captions": ["x"] * len(row["captions"]), "images": [image] if row["image_tokens"] else [], "tokens": b""},
        **{"segments": [], "dropped_images": 0, "language": ("en", "de", "")[number % 3], "scores": score},
    }


class Part:
    def __init__(self, source: str, number: int) -> None:
        self.source, self.number, self.part = source, number, f"{source}-{number:06d}"

    def rows(self) -> list[dict[str, Any]]:
        rng = np.random.default_rng([len(self.source), ord(self.source[0]), self.number])
        return [make_row(rng, self.source, rng.random() < 0.1) for _ in range(150)]


class Tokenized:
    def __init__(self, context: StepContext) -> None:
        pass

    def process(self, item: Part) -> PartOutput:
        table = write_table(item.rows(), DOCUMENTS)
        return PartOutput(item.part, item.source, {f"{item.part}.parquet": table}, Rows(entered=150, out=150))


@pytest.fixture(scope="session")
def recipe_of() -> Callable[..., Recipe]:
    def make(**mix: Any) -> Recipe:
        finetune = mix.pop("finetune", {})
        scorers = [{"name": name, "type": "a:B"} for name in mix.pop("scorers", [])]
        changed: dict[str, Any] = {
            "scan": {"scorers": scorers},
            "mix": RECIPE["mix"] | mix,
            "finetune_mix": RECIPE["finetune_mix"] | finetune,
        }
        return parse_recipe(RECIPE | changed)

    return make


PRINTS = {"tokenize": "tokenize-0123", "encode": "encode-0123", "text-tokenizer": "t"}


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory, recipe_of: Callable[..., Recipe]) -> Path:
    """A tokenize step's folder, and beside it the samples that its documents were made of."""
    folder = tmp_path_factory.mktemp("mix")
    context = StepContext(recipe_of(), str(folder), "tokenize", prints=PRINTS)
    parts = [Part(source, number) for source in KINDS for number in range(3)]
    context.finish(parts=run_items(context, parts, Tokenized, workers=0))
    samples = StepContext(recipe_of(), str(folder), "encode", prints=PRINTS).store()
    for part in parts:
        samples.put(f"parts/{part.part}.parquet", write_table([make_sample(r) for r in part.rows()], SAMPLES))
    return folder


@pytest.fixture
def context_of(workdir: Path, recipe_of: Callable[..., Recipe]) -> Callable[..., StepContext]:
    """A mix step over that store, with changed keys of the recipe's ``mix`` (and ``finetune=…``)."""

    def make(number: int = 0, **mix: Any) -> StepContext:
        prints = PRINTS | {"mix": f"mix-{number:08d}-0123"}
        return StepContext(recipe_of(**mix), str(workdir), "mix", f"job-{number}", prints=prints)

    return make


@pytest.fixture(scope="session")
def known(workdir: Path, recipe_of: Callable[..., Recipe]) -> dict[tuple[str, int], Known]:
    """Every document by part and row."""
    context = StepContext(recipe_of(), str(workdir), "mix", prints=PRINTS)
    found = {}
    for part in context.manifest("tokenize").parts:
        store, name = context.store("tokenize"), f"parts/{part}.parquet"
        for row, d in enumerate(read_table(store.get(name), DOCUMENTS, name).to_pylist()):
            columns = {k: d[k] for k in ("held_out", "kind", "category", "lengths", "image_tokens", "sample_id")}
            answers = sum(byte.bit_count() for byte in d["loss"])
            found[part, row] = Known(part.rpartition("-")[0], part, row, answer_tokens=answers, **columns)
    return found


@pytest.fixture(scope="session")
def streams(workdir: Path, recipe_of: Callable[..., Recipe]) -> Streams:
    """The streams of the untouched recipe, in groups of one part."""
    recipe = recipe_of()
    context = StepContext(recipe, str(workdir), "mix", prints=PRINTS | {"mix": "mix-streams-0123"})
    items = [IndexItem(part.rpartition("-")[0], int(part[-6:]), (part,)) for part in context.manifest("tokenize").parts]
    made = load_parts(context.store(), run_items(context, items, Indexer, workers=0))
    return Streams.of(made, recipe, lambda part: load_group(context, part))


@pytest.fixture(scope="session")
def built(workdir: Path, recipe_of: Callable[..., Recipe]) -> tuple[StepContext, Plan]:
    """The untouched recipe's mixture."""
    context = StepContext(recipe_of(), str(workdir), "mix", "job", prints=PRINTS | {"mix": "mix-base-0123"})
    return context, build(context, workers=0)
