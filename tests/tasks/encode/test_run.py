"""The step ``encode``: samples become rows of the sample store, pictures become codes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infra.store.commit import PARTS, load_part
from infra.store.samples import QUARANTINE, SAMPLES
from infra.store.tables import read_table
from model.image_tokenizer.load import load_image_tokenizer
from tasks.context import StepContext
from tasks.encode import run as encode
from tasks.encode.decode import ImageError, open_image
from tasks.encode.transforms import transform
from tasks.recipe import Recipe, parse_recipe
from tasks.sheets import png
from tasks.sources.base import RawImage, RawSample, Segment
from tests.tasks import toy_run

REFERENCE = transform("reference-1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A run up to the image tokenizer."""
    torch.set_num_threads(1)
    workdir = tmp_path_factory.mktemp("encode")
    return workdir, toy_run.make(workdir, "image-tokenizer")


def context_of(made: tuple[Path, Recipe], **encode_settings: int) -> StepContext:
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
    pairs = rows(context, "shapes-00000")
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
    texts = rows(context, "words-00001")
    assert texts
    assert all(not r["images"] and r["segments"][0]["text"] for r in texts)
    talk = rows(context, "talks-00000")[0]
    assert [s["role"] for s in talk["segments"]] == ["user", "user", "assistant"]
    assert talk["segments"][0]["image"] == 0
    assert manifest.facts["images"]["shapes"] == sum(selected[p] for p in manifest.parts if p.startswith("shapes"))


def test_made_twice_the_bytes_are_the_same(made: tuple[Path, Recipe]) -> None:
    context = context_of(made, batch=3)
    for item in encode.work_items(context)[:3]:
        first, second = encode.SampleEncoder(context), encode.SampleEncoder(context)
        second.process(encode.work_items(context)[-1])  # what a worker did before leaves no trace
        assert first.process(item).files == second.process(item).files


def test_what_cannot_be_decoded_is_quarantined_alone(
    made: tuple[Path, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(made, batch=4)
    victim = toy_run.picture("red", "circle")

    def decode(data: bytes, max_pixels: int) -> Image.Image:
        if data == victim:
            raise ImageError("truncated", "it was cut while nobody looked")
        return open_image(data, max_pixels)

    whole = encode.SampleEncoder(context).process(encode.work_items(context)[0])
    monkeypatch.setattr(encode, "open_image", decode)
    out = encode.SampleEncoder(context).process(encode.work_items(context)[0])
    assert out.rows.balance == 0
    assert out.rows.quarantined == {"truncated": 1}
    (bad,) = read_table(out.files["shapes-00000.quarantine.parquet"], QUARANTINE, "").to_pylist()
    assert bad["key"] == "red-circle"
    assert "nobody looked" in bad["message"]
    kept, before = (read_table(o.files["shapes-00000.parquet"], SAMPLES, "").to_pylist() for o in (out, whole))
    assert kept == [row for row in before if row["key"] != "red-circle"]


def test_prompt_pictures_are_padded_and_others_cropped() -> None:
    wide = png(Image.new("RGB", (40, 20), (0, 0, 0)))
    images = (RawImage("asked.png", wide), RawImage("answered.png", wide))
    sample = RawSample(
        "k",
        "f",
        0,
        segments=(
            Segment(image=0, role="user"),
            Segment("And now?", role="user"),
            Segment(image=1, role="assistant"),
        ),
        images=images,
    )
    padded, cropped = encode.pixels_of(sample, REFERENCE, 16, 10**6)
    assert (padded[:4] == 255).all()
    assert (padded[4:12] == 0).all()
    assert (cropped == 0).all()
    with pytest.raises(encode.MissingImage, match="gone.png"):
        encode.pixels_of(RawSample("k", "f", 0, images=(RawImage("gone.png", None),)), REFERENCE, 16, 10**6)
