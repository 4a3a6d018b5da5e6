"""What the engine wraps: the transformer with its loss, and the figures of a micro-batch that are watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.data.batch import Batch
from model.training.watch.look import ResidualNorms
from model.transformer.backends import Segments
from model.transformer.model import Transformer

MODALITIES = ("text", "image")


def sums_of(layers: int) -> tuple[str, ...]:
    """Names of what every rank adds up over a step; one all-reduce carries them all."""
    residuals = (f"residual_norm_{i}" for i in range(layers))
    by_modality = ("nll_text", "n_text", "nll_image", "n_image", "z2_text", "z2_image", "log_z_text", "log_z_image")
    return (*by_modality, "tokens", *residuals, "output_norm", "stop")


def figures_of(by: Mapping[str, float]) -> dict[str, Any]:
    """A step's sums as the means that are written down; a modality only where it occurs."""
    counted = max(1.0, by["n_text"] + by["n_image"])
    found: dict[str, Any] = {"loss": (by["nll_text"] + by["nll_image"]) / counted}
    found |= {f"loss_{m}": by[f"nll_{m}"] / by[f"n_{m}"] for m in MODALITIES if by[f"n_{m}"]}
    for name in ("z2", "log_z"):
        found[name] = (by[f"{name}_text"] + by[f"{name}_image"]) / counted
        found |= {f"{name}_{m}": by[f"{name}_{m}"] / by[f"n_{m}"] for m in MODALITIES if by[f"n_{m}"]}
    tokens = max(1.0, by["tokens"])
    norms = [total / tokens for name, total in by.items() if name.startswith("residual_norm_")]
    output = by["output_norm"] / tokens
    found |= {"output_norm": output, "residual_norms": [*norms, output]}
    return found | {"image_share": by["n_image"] / counted, "tokens": int(by["tokens"])}


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
        self.sums = sums_of(transformer.config.layers)
        self._residual_norms = ResidualNorms(transformer)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss, and the sums that ``sums`` names (float64) over this micro-batch."""
        documents_BT, positions_BT, segments = batch["documents"], batch["positions"], None
        if "cu_seqlens" in batch:
            segments = Segments(batch["cu_seqlens"], int(batch["max_seqlen"]))
        if self.attention == "sequence":
            documents_BT, segments = documents_BT.clamp(max=0), None  # padding, -1, stays apart
            positions_BT = torch.arange(positions_BT.shape[1], device=positions_BT.device).expand_as(positions_BT)
        hidden_BTD = self.transformer(batch["tokens"], documents_BT, positions_BT, segments=segments)
        loss = self.transformer.loss(hidden_BTD, batch["labels"], self.z_loss, self.weights(batch))
        with torch.no_grad():
            image_N = batch["image"].flatten()[loss.index_N]
            real_BT = batch["documents"] >= 0
            nll_N, log_z_N, n_image = loss.nll_N.double(), loss.log_z_N.double(), image_N.sum()
            figures = (
                *(nll_N[~image_N].sum(), len(nll_N) - n_image, nll_N[image_N].sum(), n_image),
                *(x_N[of].sum() for x_N in (log_z_N.square(), log_z_N) for of in (~image_N, image_N)),
                *(real_BT.sum(), *self._residual_norms.sums(real_BT), torch.zeros(())),
            )
            return loss.total, torch.stack([f.to(image_N.device, torch.float64) for f in figures])

    def weights(self, batch: Batch) -> Tensor | None:
        """Each label's weight in the loss, (B, T) float32; None where all weigh 1."""
        return None if self.image_weight == 1 else torch.where(batch["image"], self.image_weight, 1.0)
