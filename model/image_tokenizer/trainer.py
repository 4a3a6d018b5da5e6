"""The image tokenizer in training: model, discriminator, optimizers, codebook, and one step of them all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from infra.errors import RecipeError
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining
from model.image_tokenizer.discriminator import Discriminator
from model.image_tokenizer.losses import adaptive_weight, discriminator_loss, generator_loss
from model.image_tokenizer.perceptual import PerceptualLoss, load_perceptual
from model.image_tokenizer.quantize import kmeans, sample_far
from model.image_tokenizer.schedule import PictureOrder, learning_rate_factor
from model.image_tokenizer.vqgan import Output, VQModel, normalise
from model.image_tokenizer.workers import Workers

Pictures = npt.NDArray[np.uint8]
"""(n, side, side, 3); may be memory-mapped."""

KMEANS_VECTORS_A_CODE = 32
KMEANS_ITERATIONS = 10
REVIVE_UNTIL = 0.9
"""Share of the steps after which no code is revived: a new one needs time to find its place."""


class Trainer:
    """Model, discriminator, optimizers and what else a step changes."""

    def __init__(
        self,
        config: ImageTokenizerConfig,
        training: ImageTokenizerTraining,
        pictures: Pictures,
        *,
        seed: int = 0,
        identity: str = "",
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        """``identity`` names what is trained on what; a checkpoint of another identity is refused.

        Raises RecipeError if there are no pictures, the batch cannot be shared out evenly, or weights are missing.
        """
        self.config, self.training, self.pictures = config, training, pictures
        self.seed, self.identity, self.device = seed, identity, torch.device(device)
        self.workers = Workers()
        self._check()
        self.codebook_start = int(training.codebook_start * training.steps)
        self.order = PictureOrder(len(pictures), training.batch, seed)
        self.adversarial = training.discriminator_start <= training.steps and training.discriminator_weight > 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = VQModel(config)
            self.discriminator = Discriminator(training.discriminator_channels, training.discriminator_layers)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.discriminator.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.perceptual = self._load_perceptual()
        self.optimizer = _adam(self.model, training.learning_rate, training.betas)
        self.discriminator_optimizer = _adam(self.discriminator, training.discriminator_learning_rate, training.betas)
        self.averaged = {n: p.detach().clone() for n, p in self.model.named_parameters()} if training.ema else {}
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        self.step = 0
        zeros = torch.zeros(config.codes, dtype=torch.int64, device=self.device)
        self.idle_K, self.logged_K = zeros, zeros.clone()
        """Wins by code on this worker since the last revival, and since the last report."""

    def _check(self) -> None:
        side, world = self.config.resolution, self.workers.world
        if len(self.pictures) == 0:
            raise RecipeError(
                "the image tokenizer has no pictures to train on: every source's are held out or unusable"
            )
        if self.pictures.shape[1:] != (side, side, 3) or self.pictures.dtype != np.uint8:
            raise ValueError(
                f"pictures are {self.pictures.dtype} {self.pictures.shape}, not uint8 (n, {side}, {side}, 3)"
            )
        if self.training.batch % world:
            raise RecipeError(
                f"image_tokenizer_training.batch is {self.training.batch}; with resources.train_workers = {world} it "
                f"must be a multiple of {world}"
            )

    def _load_perceptual(self) -> PerceptualLoss | None:
        weight, path = self.training.perceptual_weight, self.training.perceptual_weights
        if weight == 0:
            return None
        if path is None:
            raise RecipeError(
                f"image_tokenizer_training.perceptual_weight is {weight:g} and no perceptual_weights file is named; "
                "name LPIPS' weights, or set perceptual_weight to 0"
            )
        return load_perceptual(path).to(self.device)

    # -- one step

    def batch(self, step: int) -> Tensor:
        """This worker's pictures of a step, float -1 … 1."""
        share = self.training.batch // self.workers.world
        mine = slice(self.workers.rank * share, (self.workers.rank + 1) * share)
        indices = self.order.batch(step)[mine]
        x_BHWC = self.pictures[indices]
        if self.training.flip:
            mirrored = self.order.flips(step)[mine]
            x_BHWC[mirrored] = x_BHWC[mirrored, :, ::-1]
        x_BCHW = torch.from_numpy(np.ascontiguousarray(x_BHWC)).permute(0, 3, 1, 2)  # channels last in memory
        return normalise(x_BCHW.to(self.device))

    def train_step(self) -> dict[str, Tensor]:
        """One step of the generator and, once it has started, of the discriminator; this worker's losses."""
        training = self.training
        if self.step == self.codebook_start > 0:
            self._start_codebook()
        self._set_rates()
        x_BCHW = self.batch(self.step)
        quantised = self.step >= self.codebook_start
        adversarial = self.adversarial and self.step + 1 >= training.discriminator_start
        self.discriminator.requires_grad_(False)  # the generator's pass must leave no gradients there
        with self._autocast:
            out: Output = self.model(x_BCHW, quantised)
            losses = self._generator_losses(out, x_BCHW, adversarial)
        self._apply(self.optimizer, losses["loss"], self.model)
        if adversarial:
            self.discriminator.requires_grad_(True)
            with self._autocast:
                real, fake = self.discriminator(x_BCHW), self.discriminator(out.reconstruction_BCHW.detach())
                losses["discriminator"] = discriminator_loss(real.float(), fake.float())
            self._apply(self.discriminator_optimizer, losses["discriminator"], self.discriminator)
        self._average()
        self.step += 1
        if quantised:
            wins_K = torch.bincount(out.codes_BN.flatten(), minlength=self.config.codes)
            self.idle_K += wins_K
            self.logged_K += wins_K
            self._revive(out.latents_BCHW.detach())
        return losses

    def _generator_losses(self, out: Output, x_BCHW: Tensor, adversarial: bool) -> dict[str, Tensor]:
        training = self.training
        y_BCHW = out.reconstruction_BCHW.float()
        losses = {"l1": (y_BCHW - x_BCHW).abs().mean(), "commitment": out.commitment, "codebook": out.codebook}
        losses["mse"] = (y_BCHW.detach() - x_BCHW).square().mean()
        fidelity = losses["l1"]
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(y_BCHW, x_BCHW)
            fidelity = fidelity + training.perceptual_weight * losses["perceptual"]
        quantisation = out.commitment + training.commitment_beta * out.codebook
        loss = fidelity + training.codebook_weight * quantisation
        if adversarial:
            losses["generator"] = generator_loss(self.discriminator(out.reconstruction_BCHW).float())
            last = self.model.decoder.conv_out.weight
            losses["adaptive"] = adaptive_weight(fidelity, losses["generator"], last, self.workers.mean)
            loss = loss + training.discriminator_weight * losses["adaptive"] * losses["generator"]
        return {"loss": loss, **losses}

    def _apply(self, optimizer: torch.optim.Optimizer, loss: Tensor, module: nn.Module) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.workers.mean_gradients(module.parameters())
        optimizer.step()

    def _set_rates(self) -> None:
        factor = learning_rate_factor(self.training, self.step)
        self.optimizer.param_groups[0]["lr"] = self.training.learning_rate * factor
        self.discriminator_optimizer.param_groups[0]["lr"] = self.training.discriminator_learning_rate * factor

    @torch.no_grad()
    def _average(self) -> None:
        if self.averaged:
            decay = min(self.training.ema, (1 + self.step) / (10 + self.step))  # early weights are soon forgotten
            for name, parameter in self.model.named_parameters():
                self.averaged[name].lerp_(parameter, 1 - decay)

    # -- the codebook

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """The codebook becomes k-means of the latents of the next steps' pictures."""
        a_step = self.training.batch * self.config.codes_per_image
        steps = max(1, math.ceil(KMEANS_VECTORS_A_CODE * self.config.codes / a_step))
        latents_ND = torch.cat([_rows(self.model.latents(self.batch(self.step + i))) for i in range(steps)])
        centres_KD = kmeans(
            self.workers.gather(latents_ND).float().cpu(), self.config.codes, KMEANS_ITERATIONS, self._generator(2)
        )
        self._set_codes(torch.arange(self.config.codes), centres_KD)

    @torch.no_grad()
    def _revive(self, latents_BDHW: Tensor) -> None:
        """Every ``revive_after`` steps, codes that won nothing since then restart at latents far from all others."""
        after, steps = self.training.revive_after, self.training.steps
        if not after or self.step % after or self.step > REVIVE_UNTIL * steps:
            return
        wins_K = self.workers.sum(self.idle_K).cpu()
        self.idle_K = torch.zeros_like(self.idle_K)
        dead = (wins_K == 0).nonzero().flatten()
        if len(dead):
            latents_ND = self.workers.gather(_rows(latents_BDHW)).float().cpu()
            alive_KD = self.model.quantize.embedding.weight.detach().cpu()[wins_K > 0]
            found_KD = sample_far(latents_ND, alive_KD, len(dead), self._generator(3))
            self._set_codes(dead[: len(found_KD)], found_KD)

    def _set_codes(self, index: Tensor, values_KD: Tensor) -> None:
        weight = self.model.quantize.embedding.weight
        index, values_KD = index.to(self.device), values_KD.to(weight)
        weight.data[index] = values_KD
        if self.averaged:
            self.averaged["quantize.embedding.weight"][index] = values_KD
        for moment in ("exp_avg", "exp_avg_sq"):  # the old entry's momentum is not the new one's
            if moment in self.optimizer.state[weight]:
                self.optimizer.state[weight][moment][index] = 0

    def _generator(self, purpose: int) -> torch.Generator:
        state = np.random.SeedSequence([self.seed, purpose, self.step]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> 1))

    # -- state

    def weights(self) -> dict[str, Tensor]:
        """The weights to keep: averaged if the recipe averages, else the last."""
        state: dict[str, Tensor] = self.model.state_dict()
        return {name: self.averaged.get(name, tensor) for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a step changes; collective, because each worker counts its own pictures' codes."""
        idle_K, logged_K = (self.workers.sum(c.clone()) for c in (self.idle_K, self.logged_K))
        return {
            "format": 1,
            "identity": self.identity,
            "world": self.workers.world,
            "step": self.step,
            "model": self.model.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "averaged": self.averaged,
            "idle": idle_K,
            "logged": logged_K,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])
        self.model.load_state_dict(state["model"])
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.averaged = {name: tensor.to(self.device) for name, tensor in state["averaged"].items()}
        first = self.workers.rank == 0  # the counts are sums over all workers: one of them takes them over
        for name in ("idle", "logged"):
            setattr(self, f"{name}_K", state[name].to(self.device) * int(first))


def _adam(module: nn.Module, rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=rate, betas=betas, fused=True)


def _rows(x_BDHW: Tensor) -> Tensor:
    return x_BDHW.permute(0, 2, 3, 1).reshape(-1, x_BDHW.shape[1])
