"""``calumma image-tokenizer import`` and ``export`` as a user calls them."""

from __future__ import annotations

from pathlib import Path

import torch
from typer.testing import CliRunner, Result

from flows.cli import app
from infra.storage import Storage
from model.image_tokenizer.load import read_image_tokenizer
from tests.model.image_tokenizer.foreign import SMALL, random_model, vqvae, write_taming


def call(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["image-tokenizer", *map(str, words)])


def flat(result: Result) -> str:
    return " ".join(result.output.split())


def test_in_and_out(tmp_path: Path) -> None:
    model = random_model()
    result = call("import", write_taming(tmp_path, model), "--to", tmp_path / "ours")
    assert result.exit_code == 0, result.output
    assert "32x32 pictures to 8x8 codes of 64" in flat(result)
    assert "read as float32; 1 other tensors left out" in flat(result)
    config, weights = read_image_tokenizer(Storage(tmp_path / "ours"))
    assert config == SMALL
    assert all(torch.equal(w, weights[name]) for name, w in model.state_dict().items())
    result = call("export", tmp_path / "ours", "--as", "vqgan", "--to", tmp_path / "out.ckpt")
    assert result.exit_code == 0, result.output
    assert {p.name for p in tmp_path.glob("out.*")} == {"out.ckpt", "out.yaml"}
    result = call("export", tmp_path / "ours", "--as", "transformers", "--to", tmp_path / "theirs")
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "theirs").iterdir()} == {"config.json", "model.safetensors"}


def test_an_encoder_alone_is_said_to_be_one(tmp_path: Path) -> None:
    vqvae(random_model()).save_pretrained(tmp_path / "theirs")
    result = call("import", tmp_path / "theirs", "--to", tmp_path / "ours")
    assert result.exit_code == 0, result.output
    assert "note: this image tokenizer is an encoder only" in flat(result)
    result = call("export", tmp_path / "ours", "--as", "vqgan", "--to", tmp_path / "out.ckpt")
    assert result.exit_code == 1
    assert "an encoder only" in flat(result)


def test_errors_are_messages(tmp_path: Path) -> None:
    path = write_taming(tmp_path, random_model())
    for words, says in (
        (("import", tmp_path / "none.ckpt", "--to", tmp_path / "x"), "none.ckpt: no such file"),
        (("import", path, "--to", tmp_path / "x", "--config", tmp_path / "none.yaml"), "none.yaml: no such file"),
        (("export", tmp_path, "--as", "vqgan", "--to", tmp_path / "x.ckpt"), "config.json: no such file"),
    ):
        result = call(*words)
        assert result.exit_code == 1
        assert says in flat(result)
        assert "Traceback" not in result.output
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    result = call("import", path, "--to", tmp_path / "x")
    assert result.exit_code == 1
    assert "config.json: exists already" in flat(result)


def test_help_has_examples() -> None:
    for name in ("import", "export"):
        result = call(name, "--help")
        assert result.exit_code == 0
        assert f"Example: calumma image-tokenizer {name} " in flat(result)
