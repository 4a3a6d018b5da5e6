"""The terms of the generator's loss, and the frozen networks that some of them look through (Gafni et al., 2022).

Under bf16, autocast takes the convolutions of tokenizer, discriminator and frozen networks to bf16. Distances to the
codebook, means and sums of losses, LPIPS' unit vectors, crops and the adaptive weight are float32.
``docs/image-tokenizer.md`` says why.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from infra.errors import RecipeError
from model.image_tokenizer.batches import Batch
from model.image_tokenizer.colours import hue_distance
from model.image_tokenizer.config import ImageTokenizerTraining
from model.image_tokenizer.fits import SECTION, needs_perceptual
from model.image_tokenizer.losses import adaptive_weight, generator_loss
from model.image_tokenizer.perceptual import PerceptualLoss, load_perceptual
from model.image_tokenizer.regions import Stages, face_distance, region_term
from model.image_tokenizer.vqgan import Output

Judge = Callable[[Tensor], Tensor]


class Terms:
    """Everything that pulls at a reconstruction. Its networks are frozen, and no engine sees them."""

    def __init__(
        self,
        training: ImageTokenizerTraining,
        device: torch.device,
        *,
        faces: bool,
        objects: bool,
        average: Callable[[Tensor], Tensor],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """``faces`` and ``objects``: whether boxes are known; ``average``: a tensor's mean over all workers.

        ``rank`` of ``world``: whose share of the batch this worker's pictures are, by position.

        Raises RecipeError if a term that counts needs weights and none are named, or they cannot be read.
        """
        self.training, self._average, self._rank, self._world = training, average, rank, world
        self.faces, self.objects = (faces and training.faces_weigh > 0), (objects and training.objects_weigh > 0)
        self.perceptual: PerceptualLoss | None = None
        if needs_perceptual(training, faces=faces, objects=objects):
            assert training.perceptual_weights is not None
            self.perceptual = load_perceptual(training.perceptual_weights).to(device)
        if self.faces:
            self._face_stages = self._load_face_stages(device)

    def _load_face_stages(self, device: torch.device) -> Stages:
        training, path = self.training, self.training.face_network
        if path is None:
            assert self.perceptual is not None
            stages: Stages = self.perceptual.stages
            count = len(stages(torch.zeros(1, 3, training.crop_side, training.crop_side, device=device)))
            where = "LPIPS' VGG-16"
        else:
            network = load_torchscript(path, f"{SECTION}.face_network", device)
            blank = torch.zeros(1, 3, training.crop_side, training.crop_side, device=device)
            try:
                with torch.no_grad():
                    found = network(blank)
                fine = isinstance(found, list | tuple) and all(isinstance(f, Tensor) and len(f) == 1 for f in found)
            except Exception as e:  # a program of somebody else's: it may raise anything
                raise RecipeError(
                    f"{path}: fails on crops of {tuple(blank.shape)} ({_first_line(e)}); correct {SECTION}.face_network"
                ) from e
            if not fine:
                raise RecipeError(f"{path}: returns no list of stages' features; correct {SECTION}.face_network")
            stages, count, where = network, len(found), path
        if count != len(training.face_stage_weights):
            raise RecipeError(
                f"{where}: has {count} stages, and {SECTION}.face_stage_weights gives "
                f"{len(training.face_stage_weights)} weights; give one for each"
            )
        return stages

    def fidelity(self, y_BCHW: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The terms that compare a reconstruction, float32, with its picture, by name; scalars."""
        losses = {"l1": (y_BCHW - batch.x_BCHW).abs().mean()}
        training, x_BCHW = self.training, batch.x_BCHW
        if training.colour_weight > 0:
            losses["colour"] = hue_distance(y_BCHW, x_BCHW)
        if self.perceptual is not None and training.perceptual_weight > 0:
            losses["perceptual"] = self._lpips(self.perceptual, y_BCHW, x_BCHW)
        if self.faces:
            distance = partial(face_distance, self._face_stages, training.face_stage_weights)
            losses["face"] = region_term(distance, y_BCHW, x_BCHW, batch.faces_BS4, training.crop_side)
        if self.objects:
            assert self.perceptual is not None
            losses["object"] = region_term(
                self.perceptual.distances, y_BCHW, x_BCHW, batch.objects_BS4, training.crop_side
            )
        return losses

    def _lpips(self, perceptual: PerceptualLoss, y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """This worker's part of LPIPS: the mean over workers is that over the pictures chosen of the whole batch."""
        every, first = self.training.perceptual_every, self._rank * len(x_BCHW)
        chosen = range(0, self._world * len(x_BCHW), every)
        mine = slice(-first % every, None, every)
        if not len(x_BCHW[mine]):
            return y_BCHW.new_zeros(())
        return perceptual.distances(y_BCHW[mine], x_BCHW[mine]).sum() * (self._world / len(chosen))

    def total(
        self, out: Output, batch: Batch, judge: Callable[[Tensor], Tensor] | None, last: Tensor
    ) -> dict[str, Tensor]:
        """All terms by name, and ``loss``, the weighted sum to be made small.

        Args:
            judge: the discriminator once it counts, with parameters that take no gradients.
            last: the decoder's last weight, at which the adaptive weight compares gradients.
        """
        training, y_BCHW = self.training, out.reconstruction_BCHW.float()
        losses = self.fidelity(y_BCHW, batch)
        weights = {"l1": 1.0, "colour": training.colour_weight, "perceptual": training.perceptual_weight}
        weights |= {"face": training.faces_weigh, "object": training.objects_weigh}
        fidelity = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        quantisation = out.commitment + training.commitment_beta * out.codebook
        loss = fidelity + training.codebook_weight * quantisation
        losses |= {"commitment": out.commitment, "codebook": out.codebook}
        if judge is not None:
            losses["generator"] = generator_loss(judge(out.reconstruction_BCHW).float())
            losses["adaptive"] = adaptive_weight(fidelity, losses["generator"], last, self._average)
            loss = loss + training.discriminator_weight * losses["adaptive"] * losses["generator"]
        losses["mse"] = (y_BCHW.detach() - batch.x_BCHW).square().mean()
        return {"loss": loss, **losses}


def load_torchscript(path: str, key: str, device: torch.device) -> nn.Module:
    """A TorchScript program, frozen; RecipeError, which names the recipe's ``key``, if it cannot be read.

    Such a file is a program of torch's own language, read without Python's pickle; it is run, so it must be trusted.
    """
    try:
        with open(path, "rb") as file:
            program = torch.jit.load(io.BytesIO(file.read()), map_location=device)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError, ValueError) as e:
        raise RecipeError(f"{path}: cannot be read as TorchScript ({_first_line(e)}). Correct {key}.") from e
    found: nn.Module = program.eval()
    for parameter in found.parameters():  # of programs, torch knows no requires_grad_()
        parameter.requires_grad = False
    return found


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
