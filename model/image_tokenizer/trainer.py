"""The image tokenizer in training: model, discriminator, engines, codebook, and one step of them all.

Both networks are driven by the engines that the transformer's training uses, DeepSpeed's, at ZeRO stage 0: 69 million
parameters are no burden, and the adaptive weight wants the decoder's last weight whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from infra.errors import RecipeError, StepFailed
from infra.settings import ResourcesConfig
from model.image_tokenizer.batches import Batch, Batches, Pictures, Regions
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining
from model.image_tokenizer.discriminator import Discriminator
from model.image_tokenizer.engines import DiscriminatorStep, GeneratorStep, engine_config
from model.image_tokenizer.fits import check_sides
from model.image_tokenizer.quantize import kmeans, sample_far
from model.image_tokenizer.schedule import learning_rate_factor
from model.image_tokenizer.terms import Terms
from model.image_tokenizer.vqgan import VQModel
from model.image_tokenizer.workers import Workers
from model.training.engine import start_engine
from model.training.optimizer import set_learning_rate

FORMAT = 2
"""Of checkpoints."""
KMEANS_VECTORS_A_CODE = 32
KMEANS_ITERATIONS = 10
REVIVE_UNTIL = 0.9
"""Share of the steps after which no code is revived: a new one needs time to find its place."""


ADVICE = (
    "The last checkpoint is sound. Lower image_tokenizer_training.learning_rate or raise warmup_steps; that starts a "
    "new training."
)


class Trainer:
    """Model, discriminator, optimizers and what else a step changes."""

    def __init__(
        self,
        config: ImageTokenizerConfig,
        training: ImageTokenizerTraining,
        pictures: Pictures,
        *,
        regions: Regions | None = None,
        seed: int = 0,
        identity: str = "",
        device: str = "cpu",
        precision: str = "fp32",
        resources: ResourcesConfig | None = None,
    ) -> None:
        """``identity`` names what is trained on what; a checkpoint of another identity is refused.

        Raises:
            RecipeError: there are no pictures, the batch cannot be shared out evenly, weights are missing, or
                ``resources.deepspeed`` has a key that DeepSpeed would ignore.
            ValueError: pictures or boxes are not of the shape that they should be.
        """
        self.config, self.training, self.pictures = config, training, pictures
        self.seed, self.identity, self.device, self.precision = seed, identity, torch.device(device), precision
        self.workers = Workers()
        self._check()
        regions = regions or Regions()
        share = training.batch // self.workers.world
        self._share = slice(self.workers.rank * share, (self.workers.rank + 1) * share)
        self.batches = Batches(training, pictures, regions, seed)
        self.codebook_start = int(training.codebook_start * training.steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = VQModel(config)
            self.discriminator = Discriminator(training.discriminator_channels, training.discriminator_layers)
        self.model.to(self.device)
        self.discriminator.to(self.device)
        self.terms = Terms(
            training,
            self.device,
            faces=regions.faces is not None,
            objects=regions.objects is not None,
            average=self.workers.mean,
            rank=self.workers.rank,
            world=self.workers.world,
        )
        self.optimizer = _adam(self.model, training.learning_rate, training.betas)
        self.discriminator_optimizer = _adam(self.discriminator, training.discriminator_learning_rate, training.betas)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        engine = engine_config(resources or ResourcesConfig(), self.workers.world, share)
        self.generator_engine = start_engine(
            GeneratorStep(self.model, self.terms, self.discriminator, autocast), self.optimizer, engine
        )
        self.discriminator_engine = start_engine(
            DiscriminatorStep(self.discriminator, autocast), self.discriminator_optimizer, engine
        )
        for network in (self.model, self.discriminator):  # only now: DeepSpeed sends them round, and needs them plain
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = {n: p.detach().clone() for n, p in self.model.named_parameters()} if training.ema else {}
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
        check_sides(self.config, self.training)
        if self.training.batch % world:
            raise RecipeError(
                f"image_tokenizer_training.batch is {self.training.batch}; with resources.train_workers = {world} it "
                f"must be a multiple of {world}"
            )

    # -- one step

    def batch(self, step: int) -> Batch:
        """This worker's pictures of a step."""
        return self.batches.at(step, self._share).to(self.device)

    def train_step(self) -> dict[str, Tensor]:
        """One step of the generator and, once it has started, of the discriminator; this worker's losses."""
        if self.step == self.codebook_start > 0:
            self._start_codebook()
        factor = learning_rate_factor(self.training, self.step)
        set_learning_rate(self.optimizer, self.training.learning_rate * factor)
        set_learning_rate(self.discriminator_optimizer, self.training.discriminator_learning_rate * factor)
        batch = self.batch(self.step)
        quantised = self.step >= self.codebook_start
        adversarial = self.training.adversarial and self.step + 1 >= self.training.discriminator_start
        self.discriminator.requires_grad_(False)  # the generator's pass must leave no gradients there
        losses: dict[str, Tensor]
        loss, losses, out = self.generator_engine(batch, quantised, adversarial)
        self.generator_engine.backward(loss)
        self.generator_engine.step()
        self.discriminator.requires_grad_(True)
        if adversarial:
            loss = self.discriminator_engine(batch.x_BCHW, out.reconstruction_BCHW)
            self.discriminator_engine.backward(loss)
            self.discriminator_engine.step()
            losses["discriminator"] = loss.detach()
        self._average()
        self.step += 1
        if quantised:
            wins_K = torch.bincount(out.codes_BN.flatten(), minlength=self.config.codes)
            self.idle_K += wins_K
            self.logged_K += wins_K
            self._revive(out.latents_BCHW)
        return losses

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
        side = self.training.random_crop or self.config.resolution
        a_step = self.training.batch * (side // self.config.downsampling) ** 2
        steps = max(1, math.ceil(KMEANS_VECTORS_A_CODE * self.config.codes / a_step))
        latents_ND = torch.cat([_rows(self.model.latents(self.batch(self.step + i).x_BCHW)) for i in range(steps)])
        centres_KD = kmeans(self._all_latents(latents_ND), self.config.codes, KMEANS_ITERATIONS, self._generator(2))
        self._set_codes(torch.arange(self.config.codes), centres_KD)
        # DeepSpeed gives Adam gradients of zero where there were none; its count of steps starts here for all.
        self.optimizer.state.pop(self.model.quantize.embedding.weight, None)

    @torch.no_grad()
    def _revive(self, latents_BDHW: Tensor) -> None:
        """Every ``revive_after`` steps, codes that won nothing since then restart at latents far from all others.

        Counted from the codebook's start, so that a new one has as long as any to win something.
        """
        after, steps = self.training.revive_after, self.training.steps
        if not after or (self.step - self.codebook_start) % after or self.step > REVIVE_UNTIL * steps:
            return
        wins_K = self.workers.sum(self.idle_K).cpu()
        self.idle_K = torch.zeros_like(self.idle_K)
        dead = (wins_K == 0).nonzero().flatten()
        if len(dead):
            latents_ND = self._all_latents(_rows(latents_BDHW))
            alive_KD = self._finite(self.model.quantize.embedding.weight.detach().cpu()[wins_K > 0], "codes")
            found_KD = sample_far(latents_ND, alive_KD, len(dead), self._generator(3))
            self._set_codes(dead[: len(found_KD)], found_KD)

    def _all_latents(self, latents_ND: Tensor) -> Tensor:
        """All workers' latents, on the CPU; StepFailed, on every worker, if one is not finite."""
        return self._finite(self.workers.gather(latents_ND.float()).cpu(), "latents")

    def _finite(self, x: Tensor, name: str) -> Tensor:
        if not bool(x.isfinite().all()):  # none can be drawn by its distance to these
            raise StepFailed(f"image tokenizer, step {self.step}: {name} are not finite. {ADVICE}")
        return x

    def _set_codes(self, index: Tensor, values_KD: Tensor) -> None:
        weight = self.model.quantize.embedding.weight
        # Each worker's own processor found these; were one of another make, codebooks would part in silence.
        index, values_KD = index.to(self.device), self.workers.first(values_KD.to(weight).contiguous())
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

    @contextmanager
    def kept_weights(self) -> Iterator[VQModel]:
        """The model, not in training, with the weights to keep in it; on leaving, it goes on with its own."""
        own = {name: p.data for name, p in self.model.named_parameters()}
        self.model.eval()
        try:
            for name, p in self.model.named_parameters():
                p.data = self.averaged.get(name, p.data)
            yield self.model
        finally:
            for name, p in self.model.named_parameters():
                p.data = own[name]
            self.model.train()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a step changes; collective, because each worker counts its own pictures' codes."""
        idle_K, logged_K = (self.workers.sum(c.clone()) for c in (self.idle_K, self.logged_K))
        return {
            "format": FORMAT,
            "identity": self.identity,
            "precision": self.precision,
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
