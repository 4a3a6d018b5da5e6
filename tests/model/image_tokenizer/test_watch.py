"""Figures of held-out pictures while training, and their sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infra.errors import RecipeError
from infra.storage import Storage
from model.image_tokenizer.frechet import frechet_distance
from model.image_tokenizer.losses import perplexity, psnr, ssim
from model.image_tokenizer.perceptual import load_perceptual
from model.image_tokenizer.train import train
from model.image_tokenizer.trainer import Trainer
from model.image_tokenizer.vqgan import normalise, to_pixels
from model.image_tokenizer.watch import SHOWN, HeldOut
from tests.model.image_tokenizer.toys import CONFIG, settings, squares


class Features(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.float().mean((2, 3)), x.float().std((2, 3))], 1) / 255


@pytest.fixture
def inception(tmp_path: Path) -> Path:
    torch.jit.script(Features()).save(str(tmp_path / "inception.pt"))
    return tmp_path / "inception.pt"


def test_figures_are_of_the_weights_that_are_kept(vgg_file: Path, inception: Path) -> None:
    pictures, held_out = squares()[0], squares(30, seed=1)[0]
    plan = settings(perceptual_weights=str(vgg_file), inception_weights=str(inception), evaluate_pictures=26)
    trainer = Trainer(CONFIG, plan, pictures)
    for _ in range(6):
        trainer.train_step()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    seen = HeldOut(trainer, held_out).look()
    assert trainer.model.training
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert any(not torch.equal(w, before[name]) for name, w in trainer.weights().items())  # EMA's are others

    model = trainer.model
    model.load_state_dict(trainer.weights())
    x_BCHW = torch.from_numpy(held_out[:26]).permute(0, 3, 1, 2)
    with torch.no_grad():
        codes_BN = model.encode(normalise(x_BCHW))
        y_BCHW = to_pixels(model.decode(codes_BN))
        distance = load_perceptual(str(vgg_file))(normalise(y_BCHW), normalise(x_BCHW))
    assert seen.figures["psnr"] == pytest.approx(float(psnr(x_BCHW, y_BCHW).mean()), abs=1e-3)
    assert seen.figures["ssim"] == pytest.approx(float(ssim(x_BCHW, y_BCHW).mean()), abs=1e-3)
    assert seen.figures["lpips"] == pytest.approx(float(distance), rel=1e-3)
    features = Features()
    expected = frechet_distance(features(x_BCHW), features(y_BCHW))
    assert seen.figures["rfid"] == pytest.approx(expected, rel=0.01, abs=2e-4)
    counts_K = torch.bincount(codes_BN.flatten(), minlength=CONFIG.codes)
    assert seen.figures["perplexity"] == pytest.approx(perplexity(counts_K), abs=0.01)
    assert seen.figures["codebook_used"] == pytest.approx(float((counts_K > 0).float().mean()), abs=1e-4)

    assert seen.sheet.shape == (6 * 16, 8 * 16, 3)  # three rows of pictures, three of reconstructions
    for index in range(SHOWN):
        row, column = divmod(index, 8)
        cells = [
            seen.sheet[(2 * row + k) * 16 : (2 * row + k + 1) * 16, column * 16 : (column + 1) * 16] for k in (0, 1)
        ]
        assert np.array_equal(cells[0], held_out[index])
        assert np.abs(cells[1].astype(int) - y_BCHW[index].permute(1, 2, 0).numpy()).max() <= 1


def test_fewer_pictures_than_a_row_and_larger_than_the_sheets_cells() -> None:
    config = CONFIG.model_copy(update={"resolution": 256})
    held_out = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3)).astype(np.uint8)
    trainer = Trainer(config, settings(codebook_start=0.0), held_out)
    seen = HeldOut(trainer, held_out).look()
    assert seen.sheet.shape == (256, 8 * 128, 3)
    assert (seen.sheet[:, 3 * 128 :] == 255).all()
    halved = held_out[0].reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(seen.sheet[:128, :128] - halved).mean() < 20  # smoothed, so not equal


def test_looks_come_at_their_steps_and_go_where_people_look(tmp_path: Path) -> None:
    pictures, held_out = squares()[0], squares(4, seed=1)[0]
    store = Storage(tmp_path)
    reports: dict[int, dict[str, float]] = {}
    sheets: dict[int, tuple[int, ...]] = {}
    train(
        CONFIG,
        settings(evaluate_every=5, log_every=4),
        pictures,
        store,
        held_out=held_out,
        report=lambda step, figures: reports.update({step: dict(figures)}),
        show=lambda step, sheet: sheets.update({step: sheet.shape}),
    )
    assert [step for step, f in reports.items() if "held_out_psnr" in f] == [5, 10, 12] == list(sheets)
    assert sorted(reports) == [4, 5, 8, 10, 12]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert [e.step for e in board.Images("held_out/reconstructions")] == [5, 10, 12]
    assert [e.step for e in board.Scalars("held_out/psnr")] == [5, 10, 12]
    assert board.Scalars("train/l1")[0].step == 4


@pytest.mark.parametrize("key", ["perceptual_weights", "inception_weights"])
def test_files_that_are_no_weights_are_named(tmp_path: Path, key: str) -> None:
    (tmp_path / "bad").write_bytes(b"nonsense")
    trainer = Trainer(CONFIG, settings(**{key: str(tmp_path / "bad")}), squares()[0])
    with pytest.raises(RecipeError, match=f"bad: .*(?s:{key})"):
        HeldOut(trainer, squares()[0])
