"""Held-out losses by source and modality."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from model.data.loader import Batch
from model.transformer.model import Transformer

Losses = dict[str, dict[str, float]]
"""By modality (``text``, ``image``): ``loss``, nats a token, and ``tokens``, how many counted."""


@torch.inference_mode()
def losses_by_modality(model: Transformer, batches: Iterable[Batch]) -> Losses:
    """Mean cross-entropy of a source's held-out batches; a modality that has no tokens is left out.

    A token is of the modality of the id to be predicted: BOI, codes and EOI are ``image``, all others ``text``.
    """
    device = next(model.parameters()).device
    sums, counts = [0.0, 0.0], [0, 0]
    for batch in batches:
        on = {name: tensor.to(device) for name, tensor in batch.items()}
        hidden_BTD = model(on["tokens"], on["documents"], on["positions"])
        found = model.loss(hidden_BTD, on["labels"])
        image_N = on["image"].flatten()[found.index_N]
        for i, of_modality_N in enumerate((~image_N, image_N)):
            sums[i] += float(found.nll_N[of_modality_N].double().sum())
            counts[i] += int(of_modality_N.sum())
    return {
        name: {"loss": sums[i] / counts[i], "tokens": counts[i]}
        for i, name in enumerate(("text", "image"))
        if counts[i]
    }
