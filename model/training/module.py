"""What the engine wraps: the transformer with its loss, and the figures of a micro-batch that are watched."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from model.data.batch import Batch
from model.transformer.model import Transformer

SUMS = (
    *("nll_text", "n_text", "nll_image", "n_image", "z2", "log_z"),
    *("output_norm", "tokens", "stop"),
)
"""What every rank adds up over a step; one all-reduce carries them all."""


class TrainingModule(nn.Module):
    """What DeepSpeed wraps: tokens in, the loss and its figures out, all inside one forward, as ZeRO-3 wants it."""

    def __init__(
        self,
        transformer: Transformer,
        z_loss: float,
        image_weight: float,
        attention: Literal["document", "sequence"] = "document",
    ) -> None:
        super().__init__()
        self.transformer, self.z_loss, self.image_weight = transformer, z_loss, image_weight
        self.attention = attention
        self._output_TD = torch.empty(0)
        transformer.norm.register_forward_pre_hook(self._watch)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss, and the figures of SUMS (float64) over this micro-batch."""
        documents_BT, positions_BT = batch["documents"], batch["positions"]
        if self.attention == "sequence":
            documents_BT = documents_BT.clamp(max=0)  # padding, -1, stays apart
            positions_BT = torch.arange(positions_BT.shape[1], device=positions_BT.device).expand_as(positions_BT)
        hidden_BTD = self.transformer(batch["tokens"], documents_BT, positions_BT)
        loss = self.transformer.loss(hidden_BTD, batch["labels"], self.z_loss, self.weights(batch))
        with torch.no_grad():
            image_N = batch["image"].flatten()[loss.index_N]
            real_BT = batch["documents"] >= 0
            nll_N, n_image = loss.nll_N.double(), image_N.sum()
            figures = (
                *(nll_N[~image_N].sum(), len(nll_N) - n_image, nll_N[image_N].sum(), n_image),
                *(loss.log_z_N.double().square().sum(), loss.log_z_N.double().sum()),
                *(self._output_TD[real_BT].double().sum(), real_BT.sum(), torch.zeros(())),
            )
            return loss.total, torch.stack([f.to(torch.float64) for f in figures])

    def weights(self, batch: Batch) -> Tensor | None:
        """Each label's weight in the loss, (B, T) float32; None where all weigh 1."""
        return None if self.image_weight == 1 else torch.where(batch["image"], self.image_weight, 1.0)

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._output_TD = torch.linalg.vector_norm(inputs[0].detach(), dim=-1, dtype=torch.float32)
