from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.store.commit import load_part, load_step
from infra.store.documents import DOCUMENTS
from infra.store.manifest import Rows
from infra.store.samples import SAMPLES
from infra.store.tables import read_table, write_table
from tasks.context import StepContext
from tasks.documents.run import DocumentMaker, run
from tasks.pool import PartOutput, run_items
from tasks.recipe import parse_recipe

RECIPE: dict[str, Any] = {
    "name": "t",
    "vocabulary": {"image_codes": 16, "text_start": 32, "size": 600},
    "image_tokenizer": {"codes": 16, "resolution": 8, "multipliers": [1, 1, 1]},
    "sources": [{"name": "p", "type": "pairs", "kind": "pairs"}, {"name": "t", "type": "text", "kind": "text"}],
    "mix": {"tokens": 100, "sequence_length": 32, "stages": [{"name": "one", "share": 1, "weights": {"p": 1}}]},
    "finetune_mix": {"sources": []},
}


class Bytes:
    def encode(self, text: str) -> list[int]:
        return [35 + b for b in text.encode()]


def sample(number: int, kind: str, **kwargs: Any) -> dict[str, Any]:
    image = {"codes": np.array([1, 2, 3, 4], "<u2").tobytes(), "width": 8, "height": 8, "sha256": bytes(32), "phash": 0}
    image |= {"url": "", "faces": []}
    row = {"sample_id": number.to_bytes(16, "big"), "key": str(number), "file": "f", "row": number, "kind": kind}
    row |= {"category": "", "licence": "", "held_out": number == 1, "captions": [], "segments": [], "images": []}
    row |= {"dropped_images": 0, "language": "", "scores": [], "tokens": b""}
    if kind == "pairs":
        row["images"] = [image]
    return row | kwargs


class Encoded:
    """Stands in for the encode step: one part a source."""

    def __init__(self, context: StepContext) -> None:
        pass

    def process(self, item: Any) -> PartOutput:
        if item.part.startswith("p"):
            rows = [sample(i, "pairs", captions=["ab", "c"] if i != 2 else []) for i in range(4)]
        else:
            rows = [sample(9, "text", segments=[{"role": "", "text": "hey", "image": None}])]
        n = len(rows)
        return PartOutput(
            item.part, item.part[0], {f"{item.part}.parquet": write_table(rows, SAMPLES)}, Rows(entered=n, out=n)
        )


class Part:
    def __init__(self, part: str) -> None:
        self.part = part


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StepContext:
    recipe = parse_recipe(RECIPE)
    names = {"select", "image-tokenizer", "encode", "text-tokenizer", "tokenize"}
    monkeypatch.setattr(StepContext, "fingerprints", {name: f"{name}-0123456789" for name in names})
    monkeypatch.setattr(DocumentMaker, "_tokenizer", Bytes())
    encode = StepContext(recipe, str(tmp_path), "encode")
    encode.finish(parts=run_items(encode, [Part("p-00000"), Part("t-00000")], Encoded, workers=0))
    return StepContext(recipe, str(tmp_path), "tokenize")


def test_the_step_makes_a_part_for_each_part_and_its_ledger_closes(context: StepContext) -> None:
    run(context, workers=0)
    step = load_step(context.store())
    assert step is not None
    assert step.parts == ["p-00000", "t-00000"]
    assert step.rows["p"] == Rows(entered=4, out=3, filtered={"no-caption": 1})
    assert step.rows["t"] == Rows(entered=1, out=1)
    assert step.tokens == {"text": 3 * 2 + 3, "image": 3 * 6, "control": 3 * 2 + 2}
    assert step.facts["sources"]["p"] == {"documents": 3, "held_out": 1, "text": 6, "image": 18, "control": 6}
    table = read_table(context.store().get("parts/p-00000.parquet"), DOCUMENTS, "p")
    assert table["held_out"].to_pylist() == [False, True, False]
    assert table["lengths"].to_pylist() == [[10, 9]] * 3


def test_equal_inputs_give_equal_bytes(context: StepContext) -> None:
    run(context, workers=0)
    before = load_part(context.store(), "p-00000")
    (context.store().path() / "parts" / "p-00000.json").unlink()
    (context.store().path() / "manifest.json").unlink()
    run(context, workers=0)
    assert load_part(context.store(), "p-00000") == before
