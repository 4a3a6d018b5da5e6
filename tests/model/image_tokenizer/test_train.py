"""Training: it learns, resumes bit for bit, and is the same however many workers share a batch."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from infra.errors import RecipeError, StepFailed, StoreError
from infra.storage import Storage
from model.image_tokenizer import train as train_module
from model.image_tokenizer.config import ImageTokenizerTraining
from model.image_tokenizer.load import WEIGHTS, load_image_tokenizer
from model.image_tokenizer.losses import psnr
from model.image_tokenizer.train import METRICS, remove_checkpoints, train
from model.image_tokenizer.trainer import Trainer
from tests.model.image_tokenizer.toys import CONFIG, regions, settings, squares

RANK = Path(__file__).with_name("rank.py")


@pytest.fixture(scope="session")
def pictures() -> npt.NDArray[np.uint8]:
    return squares()[0]


def weights(store: Storage) -> bytes:
    return store.get(WEIGHTS)


def lines(store: Storage) -> list[dict[str, Any]]:
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


def test_crops_train_a_tokenizer_of_whole_pictures(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    tiled = np.tile(pictures, (1, 2, 2, 1))
    config = CONFIG.model_copy(update={"resolution": 32})
    assert train(config, settings(random_crop=16, steps=16), tiled, Storage(tmp_path))
    codes_BN = load_image_tokenizer(Storage(tmp_path)).encode(torch.from_numpy(tiled).permute(0, 3, 1, 2))
    assert codes_BN.shape == (len(tiled), 64)
    assert codes_BN.unique().numel() > 4


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


def two_workers(folder: Path, jobs: list[dict[str, object]]) -> None:
    """Trainings, one after the other, on two processes of one group, through DeepSpeed."""
    (folder / "jobs.json").write_text(json.dumps([{"config": CONFIG.model_dump(), **job} for job in jobs]))
    workers = [subprocess.Popen([sys.executable, str(RANK), str(rank), str(folder)]) for rank in range(2)]
    try:
        assert [worker.wait() for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()


def test_two_workers_train_what_one_does(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    """The one by torch alone, the two through DeepSpeed: so they also agree on what a step is."""
    one, two = Storage(tmp_path / "one"), Storage(tmp_path / "two")
    # Few steps and no revival: Adam and nearest codes enlarge differences in the last bit.
    plan = settings(steps=4, codebook_start=0.0, revive_after=0, discriminator_start=2)
    held_out = squares(7, seed=1)[0]
    train(CONFIG, plan, pictures, one, held_out=held_out)
    np.save(tmp_path / "pictures.npy", pictures)
    np.save(tmp_path / "held_out.npy", held_out)
    two_workers(tmp_path, [{"training": plan.model_dump(), "store": "two"}])
    a, b = load_image_tokenizer(one).model.state_dict(), load_image_tokenizer(two).model.state_dict()
    for name in a.keys() - {f"{side}.mid.attn_1.k.bias" for side in ("encoder", "decoder")}:  # no gradient but noise
        assert torch.allclose(a[name], b[name], atol=2e-4), name
    for f, g in zip(lines(one), lines(two), strict=True):
        assert f.keys() == g.keys()
        assert f["l1"] == pytest.approx(g["l1"], rel=1e-3)
        assert f["adaptive"] == pytest.approx(g["adaptive"], rel=1e-2)
        assert f["perplexity"] == pytest.approx(g["perplexity"], rel=0.05)
    seen, also_seen = lines(one)[-1]["held_out"], lines(two)[-1]["held_out"]
    assert seen.keys() == also_seen.keys() == {"psnr", "ssim", "codebook_used", "perplexity"}
    assert seen["psnr"] == pytest.approx(also_seen["psnr"], abs=0.01)
    assert seen["ssim"] == pytest.approx(also_seen["ssim"], abs=1e-3)


def test_two_workers_with_every_term_go_on_bit_for_bit(vgg_file: Path, tmp_path: Path) -> None:
    pictures, boxes = squares()
    found = regions(boxes)
    for name, array in {"pictures": pictures, "faces": found.faces, "objects": found.objects}.items():
        np.save(tmp_path / f"{name}.npy", array)
    changes = {"steps": 6, "discriminator_start": 3, "perceptual_weight": 0.1, "perceptual_weights": str(vgg_file)}
    plan = settings(**changes, log_every=1, checkpoint_every=100).model_dump()
    broken = {"training": plan, "store": "broken"}
    two_workers(tmp_path, [{"training": plan, "store": "whole"}, {**broken, "stop_at": 4}, broken])
    stores = [Storage(tmp_path / name) for name in ("whole", "broken")]
    assert stores[1].list("checkpoints") == ["step-000000004.pt", "step-000000006.pt"]
    assert weights(stores[0]) == weights(stores[1])
    assert stores[0].get(METRICS) == stores[1].get(METRICS)
    ends = [
        torch.load(io.BytesIO(s.get("checkpoints/step-000000006.pt")), weights_only=True)  # both optimizers in it
        for s in stores
    ]
    assert same(*ends)
    last = lines(stores[0])[-1]
    assert {"perceptual", "face", "object", "generator", "adaptive", "discriminator"} <= last.keys()

    alone = Storage(tmp_path / "alone")  # one worker takes it from there, which rounds otherwise
    alone.put("checkpoints/step-000000004.pt", stores[1].get("checkpoints/step-000000004.pt"))
    train(CONFIG, ImageTokenizerTraining(**plan), pictures, alone, regions=found)
    assert lines(alone)[-1]["step"] == last["step"]
    assert lines(alone)[-1]["l1"] == pytest.approx(last["l1"], rel=1e-3)


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints hold the same bits."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


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


def test_weights_that_are_not_finite_are_never_saved(
    pictures: npt.NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's loss was finite; the gradients that followed from it were not."""

    def train_step(trainer: Trainer, real: Callable[[Trainer], dict[str, torch.Tensor]] = Trainer.train_step) -> object:
        losses = real(trainer)
        if trainer.step == 5:
            trainer.model.decoder.conv_in.weight.data[0, 0, 0, 0] = torch.nan
        return losses

    monkeypatch.setattr(Trainer, "train_step", train_step)
    with pytest.raises(StepFailed, match="step 5: weights of the tokenizer are not finite"):
        train(CONFIG, settings(), pictures, Storage(tmp_path))
    assert Storage(tmp_path).list("checkpoints") == []


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="learning_rate"):
        train(CONFIG, settings(learning_rate=1e30), pictures, Storage(tmp_path))
    assert Storage(tmp_path).list("checkpoints") == []


@pytest.mark.parametrize("changes", [{"codebook_start": 0.5}, {"codebook_start": 0.0, "revive_after": 6}])
def test_latents_that_are_not_finite_never_become_codes(
    pictures: npt.NDArray[np.uint8], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Neither in k-means nor in revival, though no line was due that would have told."""
    plan = settings(learning_rate=1e30, log_every=100, checkpoint_every=100, **changes)
    with pytest.raises(StepFailed, match=r"step 6: latents are not finite\..*learning_rate"):
        train(CONFIG, plan, pictures, Storage(tmp_path))


def test_going_on_in_another_precision_is_refused(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    store = Storage(tmp_path)
    asked = iter([False] * 2 + [True])
    train(CONFIG, settings(), pictures, store, should_stop=lambda: next(asked))
    with pytest.raises(StoreError, match=r"step-000000002\.pt: .* in fp32; .* in bf16. Set resources\.precision: fp32"):
        train(CONFIG, settings(), pictures, store, precision="bf16")


def test_recipes_that_cannot_be_trained(pictures: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    store = Storage(tmp_path)
    with pytest.raises(RecipeError, match="no pictures"):
        train(CONFIG, settings(), pictures[:0], store)
    with pytest.raises(RecipeError, match="perceptual_weight"):
        train(CONFIG, settings(perceptual_weight=1.0), pictures, store)
    for crop in (18, 20):
        with pytest.raises(RecipeError, match=f"random_crop is {crop}.*multiple of 4.*resolution = 16"):
            train(CONFIG, settings(random_crop=crop), pictures, store)
    with pytest.raises(RecipeError, match="resolution is 16; a discriminator of 3 layers"):
        train(CONFIG, settings(discriminator_layers=3), pictures, store)
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
