"""The architecture of foreign weights: read from the tensors' shapes, and compared with what describes them.

What our :class:`VQModel` cannot be is refused by name: attention at levels, two latents for one (``double_z``), other
numbers of colour channels, shortcuts by 3x3 convolutions, tensors that belong to nothing.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from infra.errors import StoreError
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.load import has_decoder
from model.image_tokenizer.vqgan import VQModel

GROUPS = 32
"""Of every GroupNorm, in taming as in ``transformers``."""
RESOLUTION = 512
"""What ``transformers`` takes where a configuration says nothing."""
LARGEST = 2**31 - 1
"""Number that a configuration may give for anything."""
NAMED = 5
"""Tensors, at most, that a message lists."""
A_BLOCK = 8
"""Tensors of a residual block, at least."""
FOUND_BY = "encoder.conv_in.weight"

_DDCONFIG = {"ch": "channels", "num_res_blocks": "residual_blocks", "z_channels": "z_channels"} | {
    "ch_mult": "multipliers",
    "resolution": "resolution",
}
_DD_ONLY = {"double_z": False, "in_channels": 3, "out_ch": 3, "resamp_with_conv": True, "attn_type": "vanilla"} | {
    "use_linear_attn": False,
    "give_pre_end": False,
    "tanh_out": False,
}
_VQ_CONFIG = {"base_channels": "channels", "num_res_blocks": "residual_blocks", "latent_channels": "z_channels"} | {
    "channel_multiplier": "multipliers",
    "resolution": "resolution",
    "num_embeddings": "codes",
    "embed_dim": "embed_dim",
}
_VQ_ONLY = {"double_latent": False, "in_channels": 3, "attn_type": "vanilla"}


def architecture_of(
    weights: Mapping[str, Tensor], described: Mapping[str, Any], where: str, groups: int = GROUPS
) -> ImageTokenizerConfig:
    """The configuration that these weights have.

    Args:
        weights: By taming's names, without prefix; the decoder's may be missing as a whole.
        described: What :func:`describe` read, and ``resolution``, which no shape tells.
        where: Whose they are, for messages.
        groups: Of every GroupNorm, which no shape tells either; other than 32 in our own layout only.

    Raises:
        StoreError: The weights are not such a model's, or the description says otherwise.
    """
    _refuse_strangers(weights, where)
    found = _from_shapes(weights, where) | {"resolution": described.get("resolution", RESOLUTION)}
    for key, value in described.items():
        if found[key] != value:
            raise StoreError(
                f"{where}: by the shapes of its tensors {key} is {found[key]}, and its configuration says "
                f"{_shown(value)}. "
                "They do not belong together; name the configuration that does."
            )
    try:
        config = ImageTokenizerConfig(**found, norm_groups=groups)
    except ValidationError as e:
        reasons = "; ".join(str(error["msg"]).removeprefix("Value error, ") for error in e.errors())
        raise StoreError(f"{where}: this architecture cannot be represented: {reasons}") from e
    _compare(config, weights, where)
    return config


def _from_shapes(weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    def shape(name: str, length: int) -> torch.Size:
        if name not in weights:
            raise StoreError(f"{where}: there is no tensor {name}; is the file whole?")
        if weights[name].ndim != length:
            raise StoreError(f"{where}: {name} has shape {tuple(weights[name].shape)}; expected {length} dimensions")
        return weights[name].shape

    channels, colours, *_ = shape(FOUND_BY, 4)
    if colours != 3:
        raise StoreError(f"{where}: {FOUND_BY} takes {colours} colour channels; expected 3")
    latent, z_channels = shape("encoder.conv_out.weight", 4)[0], shape("post_quant_conv.weight", 4)[0]
    if latent == 2 * z_channels:
        raise StoreError(
            f"{where}: encoder.conv_out.weight has {latent} outputs for {z_channels} channels of the latent: a mean "
            "and a variance each (double_z), as in a KL autoencoder. Only encoders with one are supported."
        )
    indices = [re.fullmatch(r"encoder\.down\.(\d{1,9})\.block\.(\d{1,9})\.conv1\.weight", name) for name in weights]
    blocks = [(int(match[1]), int(match[2])) for match in indices if match]
    levels, residual_blocks = (1 + max(numbers, default=0) for numbers in zip(*blocks or [(0, 0)], strict=True))
    if A_BLOCK * levels * residual_blocks > len(weights):  # or the model that they are compared with would have as many
        raise StoreError(
            f"{where}: by the names of its tensors it has {levels} levels of {residual_blocks} blocks, and there are "
            f"{len(weights)} tensors; is the file whole?"
        )
    multipliers = []
    for level in range(levels):
        width = shape(f"encoder.down.{level}.block.0.conv1.weight", 4)[0]
        if width % channels:
            raise StoreError(f"{where}: level {level} has {width} channels; expected a multiple of {channels}")
        multipliers.append(width // channels)
    codes, embed_dim = shape("quantize.embedding.weight", 2)
    return {
        "codes": codes,
        "embed_dim": embed_dim,
        "z_channels": z_channels,
        "channels": channels,
        "multipliers": tuple(multipliers),
        "residual_blocks": residual_blocks,
    }


def _refuse_strangers(weights: Mapping[str, Tensor], where: str) -> None:
    for pattern, meaning in (
        (r"\.(down|up)\.\d+\.attn\.", "attention at a level (attn_resolutions)"),
        (r"\.conv_shortcut\.", "shortcuts by 3x3 convolutions"),
        (r"^quantize\.(used|embed|proj)\b", "a quantiser that is not one plain codebook"),
    ):
        named = [name for name in weights if re.search(pattern, name)]
        if named:
            raise StoreError(f"{where}: {named[0]} means {meaning}, which Calumma's image tokenizer does not have")


def _compare(config: ImageTokenizerConfig, weights: Mapping[str, Tensor], where: str) -> None:
    with torch.device("meta"):
        expected = VQModel(config, decoder=has_decoder(weights)).state_dict()
    faults = []
    if missing := sorted(expected.keys() - weights.keys()):
        faults.append("missing: " + _some(missing))
    if strange := sorted(weights.keys() - expected.keys()):
        faults.append("belonging to nothing: " + _some(strange))
    other = [name for name in sorted(expected.keys() & weights.keys()) if expected[name].shape != weights[name].shape]
    faults += [
        f"{name} has shape {tuple(weights[name].shape)} and should have {tuple(expected[name].shape)}"
        for name in other[:NAMED]
    ]
    if faults:
        part = "encoder, codebook and decoder" if has_decoder(weights) else "encoder and codebook"
        raise StoreError(
            f"{where}: not the tensors of a VQ-GAN's {part} with {config.channels} channels, levels "
            f"{list(config.multipliers)} and {config.residual_blocks} blocks a level: {'; '.join(faults)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


# -- descriptions


def describe(text: bytes, where: str) -> dict[str, Any]:
    """What a configuration file says of the architecture, by our keys.

    Args:
        text: taming's YAML (``model.params``), or ``transformers``' ``config.json`` of a whole Chameleon (its
            ``vq_config``) or of a ``ChameleonVQVAE``.
        where: Its address, for messages.

    Raises:
        StoreError: It is neither, or asks for what cannot be represented.
    """
    try:
        found = json.loads(text) if where.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as e:
        raise StoreError(f"{where}: cannot be read ({e})") from e
    if not isinstance(found, dict):
        raise StoreError(f"{where}: expected keys and values at the top, got {type(found).__name__}")
    if isinstance(found.get("vq_config"), dict):
        return _described(found["vq_config"], _VQ_CONFIG, _VQ_ONLY, where, "vq_config.")
    if found.get("model_type") == "chameleon_vqgan":
        return _described(found, _VQ_CONFIG, _VQ_ONLY, where, "")
    model = found.get("model", found)
    params = model.get("params", model) if isinstance(model, dict) else None
    dd = params.get("ddconfig") if isinstance(params, dict) else None
    if not isinstance(params, dict) or not isinstance(dd, dict):
        raise StoreError(
            f"{where}: describes no VQ-GAN: expected model.params.ddconfig as in taming's YAML, or vq_config as in "
            "transformers' config.json"
        )
    if params.get("remap") is not None:
        raise StoreError(
            f"{where}: model.params.remap is {_shown(params['remap'])}; codes that are renamed are not supported"
        )
    own = {"n_embed": "codes", "embed_dim": "embed_dim"}
    return _described(dd, _DDCONFIG, _DD_ONLY, where, "model.params.ddconfig.") | {
        ours: _number(params[theirs], f"model.params.{theirs}", where)
        for theirs, ours in own.items()
        if theirs in params
    }


def _described(
    section: Mapping[str, Any], keys: Mapping[str, str], only: Mapping[str, Any], where: str, at: str
) -> dict[str, Any]:
    for key, value in only.items():
        if key in section and section[key] != value:
            raise StoreError(f"{where}: {at}{key} is {_shown(section[key])}; only {value!r} can be represented")
    described: dict[str, Any] = {}
    for theirs, ours in keys.items():
        if theirs not in section:
            continue
        value = section[theirs]
        if ours == "multipliers" and isinstance(value, list | tuple):
            described[ours] = tuple(_number(v, at + theirs, where) for v in value)
        else:
            described[ours] = _number(value, at + theirs, where)
    sides = section.get("attn_resolutions") or []
    levels = range(len(described.get("multipliers", ())))
    reached = {described.get("resolution", RESOLUTION) >> level for level in levels}
    if not isinstance(sides, list | tuple) or any(not isinstance(side, int) or side in reached for side in sides):
        raise StoreError(
            f"{where}: {at}attn_resolutions is {_shown(sides)}: attention at levels is not supported, only in the "
            "middle"
        )
    return described


def _number(value: object, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST:
        raise StoreError(f"{where}: {key} is {_shown(value)}; expected a whole number from 1 to {LARGEST}")
    return value


def _shown(value: object) -> str:
    """A value of somebody else's in a few words: by its aliases, a YAML of a few lines can hold a list of gigabytes."""
    short = reprlib.Repr()
    short.maxlevel = 2
    try:
        return short.repr(value)
    except ValueError:  # of a number with more digits than Python writes out
        return f"a {type(value).__name__} too long to show"
