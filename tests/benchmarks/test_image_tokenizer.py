"""The benchmark of the image tokenizer's training runs and gives the figures that it promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import image_tokenizer
from benchmarks.image_tokenizer import KMeansPatches, code_use, quality, read_split, sheet
from infra.storage import Storage
from model.image_tokenizer.load import load_image_tokenizer
from tasks.sheets import cut

SMALL = (
    "image_tokenizer.resolution=16",
    "image_tokenizer.codes=16",
    "vocabulary.image_codes=16",
    "image_tokenizer.multipliers=[1,1]",
    "image_tokenizer_training.batch=4",
    "image_tokenizer_training.random_crop=16",
    "image_tokenizer_training.revive_after=2",
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(30):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((25, 20), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    (folder / "30.png").write_bytes((folder / "29.png").read_bytes())  # the same picture under another name
    (folder / "31.png").write_bytes(b"no picture")
    return folder


@pytest.mark.integration
def test_it_runs_and_ends_with_its_figures(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "saved"
    arguments = ["--json", "--data", str(pictures), "--save", str(saved), "--held-out", "0.3", "--steps", "6"]
    for setting in SMALL:
        arguments += ["--set", setting]
    image_tokenizer.main([*arguments, "--lpips", ""])
    *_, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["pictures"] + figures["held_out"] == 30
    assert figures["steps"] == 6
    assert 0 < figures["minutes"] < 5
    assert 0 < figures["codebook_used"] <= 1
    assert 1 <= figures["perplexity"] <= 16
    for name in ("psnr", "kmeans_psnr"):
        assert 5 < figures[name] < 40
    for name in ("ssim", "kmeans_ssim"):
        assert -1 < figures[name] < 1
    tokenizer = load_image_tokenizer(Storage(str(saved / "tokenizer")))
    assert tokenizer.config.codes == 16
    rows = cut((saved / "reconstructions.png").read_bytes(), 16)
    assert len(rows) % 3 == 0


def test_minutes_become_steps(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*_: object) -> list[tuple[int, float]]:
        return [(0, 0.0), (20, 100.0), (40, 110.0), (60, 120.0), (60, 500.0)]

    monkeypatch.setattr(image_tokenizer, "train_on_workers", trained)
    recipe = image_tokenizer.load_recipe("photos", SMALL)
    steps = image_tokenizer.steps_for(
        1.0, recipe.image_tokenizer, recipe.image_tokenizer_training, np.zeros((1, 16, 16, 3), np.uint8), 2
    )
    assert steps == int(60 * 0.97 / 0.5)  # neither the start nor the saving counts


def test_the_split_is_by_content(pictures: Path) -> None:
    split = read_split(pictures, 16, 0.3)
    assert len(split.training) + len(split.held_out) == 30
    (pictures / "00.png").rename(pictures / "zz.png")
    moved = read_split(pictures, 16, 0.3)
    assert {p.tobytes() for p in moved.held_out} == {p.tobytes() for p in split.held_out}
    with pytest.raises(SystemExit, match="--held-out"):
        read_split(pictures, 16, 0.0)


def test_k_means_of_patches_finds_patches_that_repeat() -> None:
    rng = np.random.default_rng(1)
    patches = rng.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    chosen = rng.integers(0, 4, (6, 4, 4))
    pictures = patches[chosen].transpose(0, 1, 3, 2, 4, 5).reshape(6, 16, 16, 3)
    peer = KMeansPatches(pictures, 4, 8)  # four patches and their mirror images
    x_BCHW = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    assert torch.equal(peer.reconstruct(x_BCHW), x_BCHW)
    blurred = KMeansPatches(pictures, 4, 2).reconstruct(x_BCHW)
    assert quality(x_BCHW, blurred, None)["psnr"] < 30


def test_use_of_codes() -> None:
    assert code_use(torch.tensor([[0, 1], [0, 1]]), 4) == {"codebook_used": 0.5, "perplexity": pytest.approx(2.0)}


def test_sheet_rows_are_pictures_and_what_became_of_them() -> None:
    x = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    rows = cut(sheet(x, x + 100, x + 200), 8)
    assert [row[0].getpixel((0, 0))[0] for row in rows] == [0, 100, 200]
