"""The image tokenizer's encoder as ``transformers``' ``ChameleonVQVAE`` names and shapes it.

The names are the same (taming's). Its GroupNorms always have 32 groups; a model with fewer groups g is exported
r = 32/g times as wide, every inner channel r times over, which computes the same latents: a copy's groups hold what the
original's held, and every product that sums over copies is divided by their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.image_tokenizer.config import ImageTokenizerConfig

THEIR_GROUPS = 32


def to_transformers(
    config: ImageTokenizerConfig, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of ``transformers.ChameleonVQVAEConfig``, and the state of a ``ChameleonVQVAE``.

    Encoder, quantiser and the two 1x1 convolutions around it; the decoder has no place in their class.
    """
    copies = THEIR_GROUPS // config.norm_groups
    arguments = {
        "embed_dim": config.embed_dim,
        "num_embeddings": config.codes,
        "latent_channels": config.z_channels,
        "resolution": config.resolution,
        "base_channels": config.channels * copies,
        "channel_multiplier": list(config.multipliers),
        "num_res_blocks": config.residual_blocks,
    }
    state = {}
    for name, w in weights.items():
        if not name.startswith("decoder."):
            wide = _widen(name, w.detach(), copies) if name.startswith("encoder.") else w.detach()
            state[name] = wide.contiguous()
    return arguments, state


def _widen(name: str, w: Tensor, copies: int) -> Tensor:
    """One tensor of the encoder, ``copies`` times as wide on its inner sides."""
    last = name.startswith("encoder.conv_out.")  # its output is the latent, which stays as wide as it is
    if w.ndim == 1:  # a bias, or a norm's weight
        wide = w if last else w.repeat(copies)
    else:  # a convolution (out, in, height, width)
        wide = w if name == "encoder.conv_in.weight" else w.repeat(1, copies, 1, 1) / copies
        wide = wide if last else wide.repeat(copies, 1, 1, 1)
    # Attention divides q·k by the root of the width: the sum over the copies is too large by the root of their number.
    return wide / copies**0.5 if ".attn_1.q." in name else wide
