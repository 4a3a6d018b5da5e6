"""What is seen of a training while it runs: figures of held-out pictures, and their reconstructions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from model.image_tokenizer.batches import Pictures
from model.image_tokenizer.fits import SECTION
from model.image_tokenizer.frechet import frechet_distance, inception_features
from model.image_tokenizer.losses import perplexity, psnr, ssim
from model.image_tokenizer.perceptual import load_perceptual
from model.image_tokenizer.terms import load_torchscript
from model.image_tokenizer.trainer import Trainer
from model.image_tokenizer.vqgan import normalise, to_pixels

SHOWN = 24
SHOWN_A_ROW = 8
SHOWN_SIDE = 128

Sheet = npt.NDArray[np.uint8]
"""(height, width, 3): rows in turn of pictures and of their reconstructions, without gaps."""


class Seen(NamedTuple):
    """One look at held-out pictures."""

    figures: dict[str, float]
    """``psnr`` (dB), ``ssim``, ``codebook_used`` (share), ``perplexity``; ``lpips`` and ``rfid`` by weights."""
    sheet: Sheet


class HeldOut:
    """Held-out pictures, looked at with the weights that would be kept, in float32; every worker takes its share.

    Making it and each look are collective. What a look finds is the same on every worker.
    """

    def __init__(self, trainer: Trainer, pictures: Pictures) -> None:
        """Raises RecipeError if weights that the recipe names cannot be read."""
        training, device = trainer.training, trainer.device
        self._trainer, self._pictures = trainer, pictures[: training.evaluate_pictures]
        self._mine = range(trainer.workers.rank, len(self._pictures), trainer.workers.world)
        self._perceptual = trainer.terms.perceptual
        if self._perceptual is None and training.perceptual_weights is not None:
            self._perceptual = load_perceptual(training.perceptual_weights).to(device)
        self._where = training.inception_weights or ""
        self._inception = (
            load_torchscript(self._where, f"{SECTION}.inception_weights", device)
            if self._where and len(self._pictures) > 1
            else None
        )
        self._real_ND: Tensor | None = None

    @torch.no_grad()
    def look(self) -> Seen:
        """The figures and the sheet as the training stands."""
        trainer, count = self._trainer, len(self._pictures)
        names = ["psnr", "ssim", *(["lpips"] if self._perceptual is not None else [])]
        figures_NF = torch.zeros(count, len(names), dtype=torch.float64, device=trainer.device)
        wins_K = torch.zeros(trainer.config.codes, dtype=torch.int64, device=trainer.device)
        side = min(SHOWN_SIDE, trainer.config.resolution)
        shown_SCHW = torch.zeros(min(SHOWN, count), 3, side, side, dtype=torch.uint8, device=trainer.device)
        features: list[tuple[list[int], Tensor]] = []
        with trainer.kept_weights() as model:
            for indices, before in self._batches():
                x_BCHW = normalise(before)
                codes_BN = model.encode(x_BCHW)
                after = to_pixels(model.decode(codes_BN))
                wins_K += torch.bincount(codes_BN.flatten(), minlength=len(wins_K))
                found = [psnr(before, after), ssim(before, after)]
                if self._perceptual is not None:
                    found.append(self._perceptual.distances(normalise(after), x_BCHW).double())
                figures_NF[indices] = torch.stack(found, 1)
                if self._inception is not None:
                    features.append((indices, inception_features(self._inception, after, self._where)))
                for index, picture in zip(indices, after, strict=True):
                    if index < len(shown_SCHW):
                        shown_SCHW[index] = _small(picture, side)
        means_F = trainer.workers.sum(figures_NF).mean(0)
        wins_K = trainer.workers.sum(wins_K).cpu()
        figures = {name: round(float(mean), 4) for name, mean in zip(names, means_F, strict=True)}
        figures["codebook_used"] = round(float((wins_K > 0).float().mean()), 4)
        figures["perplexity"] = round(perplexity(wins_K), 2)
        if self._inception is not None:
            figures["rfid"] = round(frechet_distance(self._real(), self._whole(features)), 4)
        return Seen(figures, self._sheet(trainer.workers.sum(shown_SCHW), side))

    def _batches(self) -> Iterator[tuple[list[int], Tensor]]:
        """This worker's pictures, uint8, as many at once as it trains on."""
        size = max(1, self._trainer.training.batch // self._trainer.workers.world)
        for start in range(0, len(self._mine), size):
            indices = list(self._mine[start : start + size])
            yield indices, _tensor(self._pictures[indices]).to(self._trainer.device)

    def _real(self) -> Tensor:
        """Features of the pictures themselves, worked out once."""
        if self._real_ND is None:
            assert self._inception is not None
            self._real_ND = self._whole(
                [(i, inception_features(self._inception, before, self._where)) for i, before in self._batches()]
            )
        return self._real_ND

    def _whole(self, mine: list[tuple[list[int], Tensor]]) -> Tensor:
        """All workers' features, (N, d), from what each has."""
        workers = self._trainer.workers
        width = workers.largest(mine[0][1].shape[1] if mine else 0)
        whole_ND = torch.zeros(len(self._pictures), width, dtype=torch.float64, device=self._trainer.device)
        for indices, features in mine:
            whole_ND[indices] = features
        return workers.sum(whole_ND)

    def _sheet(self, after_SCHW: Tensor, side: int) -> Sheet:
        before = _tensor(self._pictures[: len(after_SCHW)])
        rows = []
        for start in range(0, len(after_SCHW), SHOWN_A_ROW):
            for pictures in (before, after_SCHW.cpu()):
                row = torch.full((SHOWN_A_ROW, 3, side, side), 255, dtype=torch.uint8)
                for place, picture in enumerate(pictures[start : start + SHOWN_A_ROW]):
                    row[place] = _small(picture, side)
                rows.append(row.permute(2, 0, 3, 1).reshape(side, SHOWN_A_ROW * side, 3))
        return torch.cat(rows).numpy()


def _small(picture_CHW: Tensor, side: int) -> Tensor:
    """uint8, scaled down to ``side`` where it is larger."""
    if picture_CHW.shape[-1] == side:
        return picture_CHW
    found = F.interpolate(picture_CHW[None].float(), (side, side), mode="bilinear", antialias=True)[0]
    return found.round().clamp(0, 255).to(torch.uint8)


def _tensor(pictures_BHWC: Pictures) -> Tensor:
    return torch.from_numpy(np.array(pictures_BHWC)).permute(0, 3, 1, 2)
