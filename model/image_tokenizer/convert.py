"""The image tokenizer in other layouts: taming's ``VQModel``, and its encoder as ``transformers``' ``ChameleonVQVAE``.

The names are the same (taming's). Theirs always have GroupNorms of 32 groups; a model with fewer groups g is exported
r = 32/g times as wide, every inner channel r times over, which computes the same latents and pictures: a copy's groups
hold what the original's held, and every product that sums over copies is divided by their number. With 32 groups the
tensors are the very same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from infra.errors import StoreError
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.load import DECODER, NO_DECODER, has_decoder

THEIR_GROUPS = 32
ENDS = ("encoder.conv_out.", "decoder.conv_out.")
"""Convolutions whose output stays as wide as it is: latents, colours."""
BEGINNINGS = ("encoder.conv_in.weight", "decoder.conv_in.weight")
"""Those whose input does."""


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
    return arguments, _wide(weights, copies, without=DECODER)


def to_taming(config: ImageTokenizerConfig, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of taming's YAML for this model, and its checkpoint's ``state_dict``.

    Raises:
        StoreError: There is no decoder, which taming's model has always.
    """
    if not has_decoder(weights):
        raise StoreError(NO_DECODER)
    copies = THEIR_GROUPS // config.norm_groups
    dd = {
        "double_z": False,
        "z_channels": config.z_channels,
        "resolution": config.resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.channels * copies,
        "ch_mult": list(config.multipliers),
        "num_res_blocks": config.residual_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    # Their class wants some loss; this one needs no further weights.
    loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
    params = {"embed_dim": config.embed_dim, "n_embed": config.codes, "ddconfig": dd, "lossconfig": loss}
    return {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}, _wide(weights, copies)


def _wide(weights: Mapping[str, Tensor], copies: int, without: str | None = None) -> dict[str, Tensor]:
    state = {}
    for name, w in weights.items():
        if without is None or not name.startswith(without):
            inner = name.startswith(("encoder.", "decoder."))
            state[name] = (_widen(name, w.detach(), copies) if inner and copies > 1 else w.detach()).contiguous()
    return state


def _widen(name: str, w: Tensor, copies: int) -> Tensor:
    """One tensor of the encoder or decoder, ``copies`` times as wide on its inner sides."""
    last = name.startswith(ENDS)
    if w.ndim == 1:  # a bias, or a norm's weight
        wide = w if last else w.repeat(copies)
    else:  # a convolution (out, in, height, width)
        wide = w if name in BEGINNINGS else w.repeat(1, copies, 1, 1) / copies
        wide = wide if last else wide.repeat(copies, 1, 1, 1)
    # Attention divides q·k by the root of the width: the sum over the copies is too large by the root of their number.
    return wide / copies**0.5 if ".attn_1.q." in name else wide
