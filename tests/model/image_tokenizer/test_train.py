"""Training: it learns, resumes bit for bit, and is the same however many workers share a batch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from infra.errors import RecipeError, StepFailed, StoreError
from infra.storage import Storage
from model.image_tokenizer import train as train_module
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining
from model.image_tokenizer.load import WEIGHTS, load_image_tokenizer
from model.image_tokenizer.losses import psnr
from model.image_tokenizer.train import METRICS, remove_checkpoints, train
from model.image_tokenizer.trainer import Trainer

RANK = Path(__file__).with_name("rank.py")
CONFIG = ImageTokenizerConfig(
    resolution=16,
    codes=16,
    channels=16,
    multipliers=(1, 1, 1),
    residual_blocks=1,
    z_channels=16,
    embed_dim=8,
    norm_groups=4,
)


def settings(**changes: object) -> ImageTokenizerTraining:
    base = {
        "steps": 12,
        "batch": 4,
        "learning_rate": 2e-3,
        "discriminator_learning_rate": 2e-3,
        "schedule": "cosine",
        "codebook_start": 0.25,
        "revive_after": 3,
        "perceptual_weight": 0.0,
        "discriminator_start": 7,
        "discriminator_channels": 8,
        "discriminator_layers": 2,
        "flip": True,
        "ema": 0.9,
        "log_every": 2,
        "checkpoint_every": 5,
    }
    return ImageTokenizerTraining(**{**base, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def pictures() -> npt.NDArray[np.uint8]:
    """Two-coloured squares: easy, but not trivial."""
    rng = np.random.default_rng(0)
    found = np.empty((24, 16, 16, 3), np.uint8)
    for i in range(len(found)):
        found[i] = rng.integers(0, 256, 3)
        x, y = rng.integers(0, 8, 2)
        found[i, y : y + 8, x : x + 8] = rng.integers(0, 256, 3)
    return found


def weights(store: Storage) -> bytes:
    return store.get(WEIGHTS)


def lines(store: Storage) -> list[dict[str, float]]:
    return [json.loads(line) for line in store.get(METRICS).splitlines()]


def test_it_learns(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    store = Storage(tmp_path)
    plain = settings(
        steps=150, batch=8, discriminator_start=10**6, flip=False, ema=0.0, log_every=25, checkpoint_every=100
    )
    assert train(CONFIG, plain, pictures, store)
    x_BCHW = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    tokenizer = load_image_tokenizer(store)
    codes_BN = tokenizer.encode(x_BCHW)
    flat_BCHW = x_BCHW.float().mean((2, 3), keepdim=True).round().to(torch.uint8).expand_as(x_BCHW)
    assert psnr(x_BCHW, tokenizer.decode(codes_BN)).mean() > psnr(x_BCHW, flat_BCHW).mean() + 3
    assert codes_BN.unique().numel() >= 12
    figures = lines(store)
    assert [f["step"] for f in figures] == [25, 50, 75, 100, 125, 150]
    assert figures[-1]["l1"] < figures[0]["l1"]
    assert figures[0]["codebook_used"] == 0  # still without quantisation
    assert figures[-1]["codebook_used"] > 0.7


def test_equal_inputs_give_equal_bytes(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    stores = [Storage(tmp_path / name) for name in "ab"]
    for store in stores:
        train(CONFIG, settings(), pictures, store, seed=3)
    assert weights(stores[0]) == weights(stores[1])
    assert stores[0].get(METRICS) == stores[1].get(METRICS)
    train(CONFIG, settings(), pictures, Storage(tmp_path / "c"), seed=4)
    assert weights(stores[0]) != weights(Storage(tmp_path / "c"))


@pytest.mark.parametrize("killed_at", [2, 5, 6, 11])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    pictures: npt.NDArray[np.uint8], tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = Storage(tmp_path / "whole"), Storage(tmp_path / "broken")
    train(CONFIG, settings(), pictures, whole)

    class Killed(Exception):
        pass

    def train_step(trainer: Trainer, real: Callable[[Trainer], object] = Trainer.train_step) -> object:
        if trainer.step == killed_at:
            raise Killed
        return real(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        with pytest.raises(Killed):
            train(CONFIG, settings(), pictures, broken)
    resumed_at: list[int] = []
    train(CONFIG, settings(), pictures, broken, report=lambda step, figures: resumed_at.append(step))
    assert resumed_at[0] == (2 if killed_at < 5 else 6 if killed_at < 10 else 12)
    assert weights(broken) == weights(whole)
    assert broken.get(METRICS) == whole.get(METRICS)


def test_stopping_saves_and_going_on_is_the_same(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    whole, stopped = Storage(tmp_path / "whole"), Storage(tmp_path / "stopped")
    train(CONFIG, settings(), pictures, whole)
    asked = iter([False] * 8 + [True])
    assert not train(CONFIG, settings(), pictures, stopped, should_stop=lambda: next(asked))
    assert not stopped.exists(WEIGHTS)
    assert train(CONFIG, settings(), pictures, stopped)
    assert weights(stopped) == weights(whole)


def test_two_workers_train_what_one_does(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    one, two = Storage(tmp_path / "one"), Storage(tmp_path / "two")
    # Few steps and no revival: Adam and nearest codes enlarge differences in the last bit.
    changes: dict[str, object] = {"steps": 4, "codebook_start": 0.0, "revive_after": 0, "discriminator_start": 2}
    train(CONFIG, settings(**changes), pictures, one)
    np.save(tmp_path / "pictures.npy", pictures)
    (tmp_path / "job.json").write_text(
        json.dumps({"config": CONFIG.model_dump(), "training": settings(**changes).model_dump()})
    )
    workers = [subprocess.Popen([sys.executable, str(RANK), str(rank), str(tmp_path)]) for rank in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    a, b = load_image_tokenizer(one).model.state_dict(), load_image_tokenizer(two).model.state_dict()
    for name in a.keys() - {f"{side}.mid.attn_1.k.bias" for side in ("encoder", "decoder")}:  # no gradient but noise
        assert torch.allclose(a[name], b[name], atol=2e-4), name
    for f, g in zip(lines(one), lines(two), strict=True):
        assert f.keys() == g.keys()
        assert f["l1"] == pytest.approx(g["l1"], rel=1e-3)
        assert f["adaptive"] == pytest.approx(g["adaptive"], rel=1e-2)
        assert f["perplexity"] == pytest.approx(g["perplexity"], rel=0.05)


def test_checkpoints_of_other_trainings_and_damaged_ones_are_refused(
    pictures: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    store = Storage(tmp_path)
    train(CONFIG, settings(), pictures, store, identity="a" * 32)
    assert store.list("checkpoints") == ["step-000000010.pt", "step-000000012.pt"]
    with pytest.raises(StoreError, match="another training"):
        train(CONFIG, settings(), pictures, store, identity="b" * 32)
    store.put("checkpoints/step-000000012.pt", b"torn")
    with pytest.raises(StoreError, match=r"step-000000012\.pt"):
        train(CONFIG, settings(), pictures, store, identity="a" * 32)
    remove_checkpoints(store)
    assert store.list("checkpoints") == []


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="learning_rate"):
        train(CONFIG, settings(learning_rate=1e30), pictures, Storage(tmp_path))
    assert Storage(tmp_path).list("checkpoints") == []


def test_recipes_that_cannot_be_trained(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    store = Storage(tmp_path)
    with pytest.raises(RecipeError, match="no pictures"):
        train(CONFIG, settings(), pictures[:0], store)
    with pytest.raises(RecipeError, match="perceptual_weight"):
        train(CONFIG, settings(perceptual_weight=1.0), pictures, store)
    with pytest.raises(RecipeError, match=r"missing\.safetensors"):
        train(CONFIG, settings(perceptual_weight=1.0, perceptual_weights="missing.safetensors"), pictures, store)


def test_nothing_is_lost_between_trainer_and_file(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    assert train_module.KEEP == 2
    train(CONFIG, settings(ema=0.0), pictures, Storage(tmp_path))
    trainer = Trainer(CONFIG, settings(ema=0.0), pictures)
    for _ in range(12):
        trainer.train_step()
    loaded = load_image_tokenizer(Storage(tmp_path)).model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in trainer.weights().items())
