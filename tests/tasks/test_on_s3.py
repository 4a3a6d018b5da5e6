"""A trained run whose work folder lies on a real S3 server: what reads it, and the steps after the trainings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from flows.cli import app
from infra.storage import Storage
from infra.store.commit import PARTS, load_step
from tasks import evaluate
from tasks.context import StepContext
from tasks.recipe import Recipe
from tasks.report import run as report
from tests.s3.server import Server
from tests.tasks import toy_run

Toy = tuple[Path, Recipe]


@pytest.fixture(scope="module")
def workdir(toy: Toy, s3_server: Server) -> Iterator[str]:
    """The toy run on S3, up to fine-tuning, with a folder of an export; the address of its work folder."""
    root = f"s3://{s3_server.bucket}/toy"
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_server.environment().items():
            environment.setenv(name, value)
        store, source = Storage(root), Storage(toy[0])
        for found in source.find():
            if not found.name.startswith(("evaluate/", "report/")):
                store.put(found.name, source.get(found.name))
        export = StepContext(toy[1], root, "export").store()
        for name in ("config.json", "model.safetensors"):
            export.put(f"transformers/{name}", name.encode())
        yield root


def call(*words: str | Path, code: int = 0) -> str:
    result: Result = CliRunner(env={"COLUMNS": "300"}).invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_evaluation_and_report_are_those_of_a_disk(toy: Toy, workdir: str) -> None:
    here, there = (StepContext(toy[1], str(root), "evaluate", "test") for root in (toy[0], workdir))
    evaluate.run(there, workers=0)
    assert json.loads(there.store().get("results.json")) == json.loads(here.store().get("results.json"))
    (there_too, here_too) = (load_step(context.store()) for context in (there, here))
    assert there_too is not None
    assert here_too is not None
    assert there_too.files == here_too.files
    assert there_too.parts_digest == here_too.parts_digest
    reported = StepContext(toy[1], workdir, "report", "test")
    report.run(reported)
    page = reported.store().get("report.html").decode()
    assert "Pre-training" in page
    assert page.count("<svg") == (StepContext(toy[1], str(toy[0]), "report").store().get("report.html")).count(b"<svg")


def test_it_is_asked_and_copied(workdir: str, tmp_path: Path) -> None:
    asked = ("generate", workdir, "Draw: red circle", "--modality", "image", "--out", tmp_path / "drawn")
    assert f"[picture] {tmp_path}/drawn/picture-0-1.png" in call(*asked)
    with Image.open(tmp_path / "drawn" / "picture-0-1.png") as picture:
        assert picture.size == (16, 16)
    assert "2 files" in call("export", workdir, "--out", tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == b"model.safetensors"
    assert "exists already" in call("export", workdir, "--out", tmp_path / "copy", code=1)


def test_the_newest_model_is_found_where_the_recipes_own_is_not(
    toy: Toy, workdir: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tasks.generate import generate_in

    changed = toy[1].model_copy(update={"seed": 7})
    (answer,) = generate_in(workdir, "Draw: red circle", modality="image", out=tmp_path, recipe=changed)
    assert answer.picture is not None
    assert "using the newest fine-tuned model, finetune/" in caplog.text


def test_it_is_looked_at(toy: Toy, workdir: str, tmp_path: Path) -> None:
    def folder(step: str) -> str:
        return StepContext(toy[1], workdir, step).store().root

    shown = call("inspect", f"{folder('encode')}/{PARTS}/shapes-000000.parquet", "--out", tmp_path / "sheet.png")
    assert "red circle" in shown
    assert f"5 pictures: {tmp_path}/sheet.png" in shown
    assert "▣ picture 1" in call("inspect", f"{folder('mix')}/{PARTS}/stages/stage-1", "--limit", "1")
    assert "lm_head.weight" in call("inspect", f"{folder('pretrain')}/model.safetensors")
    assert "the last 5" in call("inspect", f"{folder('pretrain')}/metrics.jsonl")
    assert "Manifest" in call("inspect", folder("finetune") + "/")
    assert "no such file" in call("inspect", f"{workdir}/nothing.json", code=1)
    assert "without a manifest" in call("inspect", f"{workdir}/runs", code=1)
    assert "s3://BUCKET/PREFIX with two slashes" in call("inspect", "s3:/bucket/x", code=1)

    status = call("status", workdir)
    assert f"toy in {workdir}" in status
    assert status.count("done") >= 10
    assert "sha256" not in call("verify", workdir)
    assert "shapes" in call("trace", workdir, "0")


def test_a_damaged_file_is_found(toy: Toy, workdir: str) -> None:
    store = StepContext(toy[1], workdir, "finetune").store()
    whole = store.get("model.safetensors")
    try:
        store.put("model.safetensors", whole[:-1] + bytes([whole[-1] ^ 1]))
        assert "model.safetensors" in call("verify", workdir, "--step", "finetune", code=1)
    finally:
        store.put("model.safetensors", whole)


def test_the_prefect_ui_of_runs_elsewhere_is_not_here(
    workdir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert f"{workdir}: no run was made in this folder" in call("ui", workdir, code=1)
    shutil.rmtree(tmp_path)


def test_pictures_to_train_on_are_kept_there(toy: Toy, workdir: str) -> None:
    from tasks.train.pictures import HELD_OUT, SCRATCH, TRAINING, collect, discard, load_pictures

    contexts = [StepContext(toy[1], str(root), "image-tokenizer", "test") for root in (toy[0], workdir)]
    for context in contexts:
        collect(context)
    here, there = (context.store() for context in contexts)
    assert all(here.get(name) == there.get(name) for name in SCRATCH)
    side = toy_run.RECIPE["image_tokenizer"]["resolution"]
    assert len(load_pictures(there, TRAINING, side)) + len(load_pictures(there, HELD_OUT, side)) == 24
    for store in (here, there):
        discard(store)
