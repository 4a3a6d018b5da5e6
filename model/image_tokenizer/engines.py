"""What the two engines of the image tokenizer's training drive, and DeepSpeed's configuration for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from infra.deepspeed_json import deepspeed_json
from infra.settings import ResourcesConfig
from model.image_tokenizer.batches import Batch
from model.image_tokenizer.discriminator import Discriminator
from model.image_tokenizer.losses import discriminator_loss
from model.image_tokenizer.terms import Terms
from model.image_tokenizer.vqgan import Output, VQModel

TRANSFORMERS = ("zero_optimization", "activation_checkpointing", "torch_autocast", "data_types", "fp16")
"""Sections of ``resources.deepspeed`` that are about the transformer's size and precision and do not count here."""


class GeneratorStep(nn.Module):
    """What the generator's engine drives: a batch in, all losses out, inside one forward.

    The other networks are kept from being submodules: their parameters are none of this engine's.
    """

    def __init__(self, model: VQModel, terms: Terms, judge: nn.Module, autocast: torch.autocast) -> None:
        super().__init__()
        self.model, self._others, self._autocast = model, (terms, judge), autocast

    def forward(self, batch: Batch, quantised: bool, adversarial: bool) -> tuple[Tensor, dict[str, Tensor], Output]:
        """The loss to be made small, all of them detached by name, and the detached output."""
        terms, judge = self._others
        with self._autocast:
            out: Output = self.model(batch.x_BCHW, quantised)
            losses = terms.total(out, batch, judge if adversarial else None, self.model.decoder.conv_out.weight)
        return losses["loss"], {n: x.detach() for n, x in losses.items()}, Output(*(x.detach() for x in out))


class DiscriminatorStep(nn.Module):
    """What the discriminator's engine drives: pictures and reconstructions in, its loss out."""

    def __init__(self, discriminator: Discriminator, autocast: torch.autocast) -> None:
        super().__init__()
        self.discriminator, self._autocast = discriminator, autocast

    def forward(self, real_BCHW: Tensor, fake_BCHW: Tensor) -> Tensor:
        with self._autocast:
            real, fake = self.discriminator(real_BCHW), self.discriminator(fake_BCHW)
            return discriminator_loss(real.float(), fake.float())


def engine_config(resources: ResourcesConfig, world: int, share: int) -> dict[str, Any]:
    """DeepSpeed's JSON: stage 0, no clipping, and no bf16, which is autocast's and leaves weights in float32."""
    extra = {key: value for key, value in resources.deepspeed.items() if key not in TRANSFORMERS}
    mine = resources.model_copy(update={"zero_stage": 0, "deepspeed": extra})
    return deepspeed_json(mine, bf16=False, world=world, micro_batch=share, accumulation=1, clip=0.0)
