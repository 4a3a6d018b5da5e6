"""The step ``encode``: samples become rows of the sample store, pictures become codes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infra.errors import ResourceError
from infra.store.commit import PARTS, load_part
from infra.store.samples import QUARANTINE, SAMPLES
from infra.store.tables import read_table
from model.image_tokenizer.load import load_image_tokenizer
from tasks.context import StepContext
from tasks.encode import run as encode
from tasks.encode.decode import ImageError, open_image
from tasks.encode.transforms import Pixels, transform
from tasks.recipe import Recipe, parse_recipe
from tasks.scan.faces import Face
from tasks.scan.selected import SelectedRow, selected, work_items
from tasks.sources.base import RawImage, RawSample, WorkItem
from tests.tasks import toy_run

REFERENCE = transform("reference-1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A run up to the image tokenizer."""
    torch.set_num_threads(1)
    workdir = tmp_path_factory.mktemp("encode")
    return workdir, toy_run.make(workdir, "image-tokenizer")


def context_of(made: tuple[Path, Recipe], **encode_settings: Any) -> StepContext:
    workdir, recipe = made
    if encode_settings:
        recipe = parse_recipe({**recipe.model_dump(mode="json"), "encode": encode_settings})
    return StepContext(recipe, str(workdir), "encode", "test")


def rows(context: StepContext, part: str, quarantine: bool = False) -> list[dict[str, Any]]:
    name = f"{PARTS}/{part}{'.quarantine' if quarantine else ''}.parquet"
    found: list[dict[str, Any]] = read_table(
        context.store().get(name), QUARANTINE if quarantine else SAMPLES, name
    ).to_pylist()
    return found


def test_every_sample_comes_through_with_its_pictures_codes(made: tuple[Path, Recipe]) -> None:
    context = context_of(made, batch=5)
    encode.run(context, workers=0)
    manifest = context.manifest("encode")
    tokenizer = load_image_tokenizer(context.store("image-tokenizer"))
    selected = {p: load_part(context.store("select"), p).rows.out for p in manifest.parts}
    for part in manifest.parts:
        ledger, table = load_part(context.store(), part), rows(context, part)
        assert ledger.rows.entered == ledger.rows.out == len(table) == selected[part]
    pairs = rows(context, "shapes-000000")
    assert {r["kind"] for r in pairs} == {"pairs"}
    for row in pairs:
        colour, _, shape = row["key"].partition("-")
        (image,) = row["images"]
        data = toy_run.picture(colour, shape)
        assert image["sha256"] == hashlib.sha256(data).digest()
        assert (image["width"], image["height"]) == Image.open(io.BytesIO(data)).size
        square = REFERENCE.crop(open_image(data, 10**6), tokenizer.config.resolution)
        (codes,) = tokenizer.encode(torch.from_numpy(square.copy()).permute(2, 0, 1)[None]).numpy()
        assert np.frombuffer(image["codes"], "<u2").tolist() == codes.tolist()
    texts = rows(context, "words-000001")
    assert texts
    assert all(not r["images"] and r["segments"][0]["text"] for r in texts)
    talk = rows(context, "talks-000000")[0]
    assert [s["role"] for s in talk["segments"]] == ["user", "user", "assistant"]
    assert talk["segments"][0]["image"] == 0
    assert manifest.facts["images"]["shapes"] == sum(selected[p] for p in manifest.parts if p.startswith("shapes"))


def test_made_twice_the_bytes_are_the_same(made: tuple[Path, Recipe]) -> None:
    context = context_of(made, batch=3)
    for item in work_items(context)[:3]:
        first, second = encode.SampleEncoder(context), encode.SampleEncoder(context)
        second.process(work_items(context)[-1])  # what a worker did before leaves no trace
        assert first.process(item).files == second.process(item).files


def test_threads_and_look_ahead_change_no_byte(made: tuple[Path, Recipe]) -> None:
    context = context_of(made, batch=3)
    items = work_items(context)
    alone = [encode.SampleEncoder(context).process(item).files for item in items]
    for threads in (1, 3):
        recipe = context.recipe.model_copy(
            update={"resources": context.recipe.resources.model_copy(update={"decode_threads": threads})}
        )
        worker = encode.SampleEncoder(StepContext(recipe, context.root, "encode", "test"))
        assert [worker.process(item).files for item in items] == alone


def test_what_the_scan_knew_is_in_the_store(made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(made, batch=4)
    item = work_items(context)[0]

    def known(context: StepContext, item: WorkItem) -> Iterator[tuple[RawSample, SelectedRow]]:
        for raw, row in selected(context, item):
            image = replace(row.images[0], url="http://a/b.png", faces=(Face(1, 2, 3, 4),))
            yield raw, replace(row, images=(image,), dropped=(1, 4), language="de", scores=(("nsfw", 0.25),))

    monkeypatch.setattr(encode, "selected", known)
    out = encode.SampleEncoder(context).process(item)
    for row in read_table(out.files[f"{item.part}.parquet"], SAMPLES, "").to_pylist():
        assert row["images"][0]["url"] == "http://a/b.png"
        assert row["images"][0]["faces"] == [{"x": 1, "y": 2, "width": 3, "height": 4}]
        assert (row["dropped_images"], row["language"]) == (2, "de")
        assert row["scores"] == [{"name": "nsfw", "value": 0.25}]
        assert row["tokens"] == b""


def test_what_is_tokenised_already_passes_through(made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(made, batch=4)
    ids = np.arange(5, dtype="<u2").tobytes()
    item = next(i for i in work_items(context) if i.source == "words")

    def tokens(context: StepContext, item: WorkItem) -> Iterator[tuple[RawSample, SelectedRow]]:
        yield RawSample("k", "f", 3, tokens=ids), SelectedRow(bytes(16), False, "CC0", ())

    monkeypatch.setattr(encode, "selected", tokens)
    out = encode.SampleEncoder(context).process(item)
    (row,) = read_table(out.files[f"{item.part}.parquet"], SAMPLES, "").to_pylist()
    assert row["tokens"] == ids
    assert (row["images"], row["segments"], row["captions"]) == ([], [], [])


def test_a_picture_that_does_not_answer_now_costs_its_sample(
    made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(made, batch=4)

    def answers(context: StepContext, item: WorkItem) -> Iterator[tuple[RawSample, SelectedRow]]:
        for raw, row in selected(context, item):
            gone = raw.key == "red-circle"
            yield replace(raw, images=(RawImage("x.png", None, error="read-error"),)) if gone else raw, row

    monkeypatch.setattr(encode, "selected", answers)
    out = encode.SampleEncoder(context).process(work_items(context)[0])
    assert out.rows.balance == 0
    assert out.rows.quarantined == {"read-error": 1}
    (bad,) = read_table(out.files["shapes-000000.quarantine.parquet"], QUARANTINE, "").to_pylist()
    assert (bad["key"], bad["error"]) == ("red-circle", "read-error")


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(made: tuple[Path, Recipe]) -> None:
    context = context_of(made)
    recipe = context.recipe.model_copy(
        update={"resources": context.recipe.resources.model_copy(update={"data_gpus": 1})}
    )
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="resources.data_gpus is 1 and torch finds no GPU"):
            encode.SampleEncoder(StepContext(recipe, context.root, "encode", "test"))


def test_what_cannot_be_decoded_is_quarantined_alone(
    made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(made, batch=4)
    victim = toy_run.picture("red", "circle")

    def crop(data: bytes, side: int, max_pixels: int) -> Pixels:
        if data == victim:
            raise ImageError("truncated", "it was cut while nobody looked")
        return REFERENCE.crop_file(data, side, max_pixels)

    whole = encode.SampleEncoder(context).process(work_items(context)[0])
    monkeypatch.setattr(encode, "transform", lambda name: replace(REFERENCE, crop_file=crop))
    out = encode.SampleEncoder(context).process(work_items(context)[0])
    assert out.rows.balance == 0
    assert out.rows.quarantined == {"truncated": 1}
    (bad,) = read_table(out.files["shapes-000000.quarantine.parquet"], QUARANTINE, "").to_pylist()
    assert bad["key"] == "red-circle"
    assert "nobody looked" in bad["message"]
    kept, before = (read_table(o.files["shapes-000000.parquet"], SAMPLES, "").to_pylist() for o in (out, whole))
    assert kept == [row for row in before if row["key"] != "red-circle"]


def test_precision_decides_the_codes_and_the_address(made: tuple[Path, Recipe]) -> None:
    exact, lowered = context_of(made, batch=4), context_of(made, batch=4, precision="bf16")
    assert exact.fingerprint != lowered.fingerprint
    assert context_of(made, batch=4, compile=True).fingerprint not in (exact.fingerprint, lowered.fingerprint)
    item = work_items(exact)[0]
    tables = [
        read_table(encode.SampleEncoder(c).process(item).files[f"{item.part}.parquet"], SAMPLES, "").to_pylist()
        for c in (exact, lowered)
    ]
    expected = load_image_tokenizer(exact.store("image-tokenizer"), precision="bf16")
    for row in tables[1]:
        square = REFERENCE.crop(open_image(toy_run.picture(*row["key"].split("-")), 10**6), expected.config.resolution)
        codes = expected.encode(torch.from_numpy(square.copy()).permute(2, 0, 1)[None])[0].tolist()
        assert np.frombuffer(row["images"][0]["codes"], "<u2").tolist() == codes
    assert [row["sample_id"] for row in tables[0]] == [row["sample_id"] for row in tables[1]]


def test_compilation_without_a_compiler_is_an_error_that_says_what_to_do(
    made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ResourceError, match="encode.compile: false"):
        encode.SampleEncoder(context_of(made, compile=True))
