"""Our weights as ``transformers``' Chameleon classes name and shape them, and back.

Differences: they keep queries, keys and values in three matrices, gate and up in two, and repeat the QK-norm of a shard
for each of its heads. Rotary channels are split in halves in both, so nothing is permuted. Their QK-norm has a fixed
epsilon of 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from infra.errors import StoreError
from model.transformer.config import TransformerConfig
from model.transformer.tensors import LazyTensors

THEIR_QK_EPS = 1e-5

_PLAIN = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attention.out.weight": "self_attn.o_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}
_QKV = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
_GATE_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")


def transformers_config(config: TransformerConfig, vocabulary_size: int) -> dict[str, Any]:
    """The fields of ``transformers.ChameleonConfig`` that describe the transformer.

    Raises:
        StoreError: their classes cannot hold this model (no QK-norm, or another epsilon).
    """
    if not config.qk_norm:
        raise StoreError("transformers' Chameleon always has QK-norm; a model with qk_norm: false cannot be exported")
    if config.norm_eps != THEIR_QK_EPS:
        raise StoreError(
            f"transformers' Chameleon fixes the QK-norm's epsilon at 1e-5; this model's is {config.norm_eps}"
        )
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.n_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "swin_norm": config.norm == "reordered",
        "model_parallel_size": config.qk_norm_shards,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }


def from_transformers_config(found: Mapping[str, Any]) -> tuple[TransformerConfig, int]:
    """Our configuration and the vocabulary's size, from the content of their ``config.json``; dropout is 0.

    Raises:
        StoreError: it describes what our model is not; the text names key, value and expectation.
    """
    if found.get("model_type") != "chameleon":
        raise StoreError(f"model_type is {found.get('model_type')!r}; expected 'chameleon'")
    for key, wanted in _FIXED.items():
        if found.get(key, wanted) != wanted:
            raise StoreError(f"{key} is {found[key]!r}, which Calumma's model cannot represent; expected {wanted!r}")
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise StoreError(f"rope_type is {kind!r}, which Calumma's model cannot represent; expected 'default'")
    keys = {"dim": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    keys |= {"ffn": "intermediate_size", "norm_eps": "rms_norm_eps"}
    said = {ours: found[theirs] for ours, theirs in keys.items() if theirs in found}
    said |= {"kv_heads": found.get("num_key_value_heads") or said.get("heads"), "dropout": 0.0}
    said |= {"norm": "reordered" if found.get("swin_norm") else "pre"}
    said |= {"qk_norm_shards": found.get("model_parallel_size") or 1}
    said |= {"rope_theta": rope.get("rope_theta", found.get("rope_theta", 10_000.0))}
    missing = [theirs for theirs in (*keys.values(), "vocab_size") if theirs not in found]
    if missing:
        raise StoreError(f"{missing[0]} is missing")
    config = TransformerConfig.model_validate(said)
    if config.norm_eps != THEIR_QK_EPS:
        raise StoreError(f"rms_norm_eps is {config.norm_eps}, and their QK-norm's is 1e-5; expected one and the same")
    return config, int(found["vocab_size"])


_FIXED = {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "hidden_act": "silu"}
"""What in their configuration must be so, if it is there at all."""


def to_transformers(weights: Mapping[str, Tensor], config: TransformerConfig) -> Mapping[str, Tensor]:
    """The state of ``ChameleonForConditionalGeneration`` without the image tokenizer's part (``model.vqmodel``).

    Lazy: a tensor is read from ``weights`` and converted when it is asked for.
    """
    kv = config.n_kv_heads * config.head_dim
    out: dict[str, Callable[[], Tensor]] = {_PLAIN[ours]: partial(_get, weights, ours) for ours in _PLAIN}
    for i in range(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        out |= {theirs + name: partial(_get, weights, ours + mine) for mine, name in _IN_LAYER.items()}
        qkv = (config.dim, kv, kv)
        for part, name in enumerate(_QKV):
            out[theirs + name] = partial(_piece, weights, ours + "attention.qkv.weight", qkv, part)
        for part, name in enumerate(_GATE_UP):
            halves = (config.ffn_dim, config.ffn_dim)
            out[theirs + name] = partial(_piece, weights, ours + "feed_forward.gate_up.weight", halves, part)
        for norm, heads in (("q_norm", config.heads), ("k_norm", config.n_kv_heads)):
            for kind in ("weight", "bias"):
                name = f"{ours}attention.{norm}.{kind}"
                out[f"{theirs}self_attn.{norm}.{kind}"] = partial(_each_head, weights, name, heads)
    return LazyTensors(out)


def from_transformers(theirs: Mapping[str, Tensor], config: TransformerConfig) -> Mapping[str, Tensor]:
    """Our weights from theirs, lazily as :func:`to_transformers`; ``model.vqmodel`` is passed over.

    Raises:
        StoreError: at once, where a tensor is missing; when a QK-norm is asked for, where heads within one of its
            shards differ, which our form would lose.
    """
    out: dict[str, Callable[[], Tensor]] = {ours: partial(_get, theirs, _PLAIN[ours]) for ours in _PLAIN}
    needed = list(_PLAIN.values())
    for i in range(config.layers):
        ours, layer = f"layers.{i}.", f"model.layers.{i}."
        for mine, name in _IN_LAYER.items():
            out[ours + mine] = partial(_get, theirs, layer + name)
        for mine, names in (("attention.qkv.weight", _QKV), ("feed_forward.gate_up.weight", _GATE_UP)):
            out[ours + mine] = partial(_joined, theirs, [layer + name for name in names])
        norms = [f"{norm}.{kind}" for norm in ("q_norm", "k_norm") for kind in ("weight", "bias")]
        for norm in norms:
            out[f"{ours}attention.{norm}"] = partial(_each_shard, theirs, f"{layer}self_attn.{norm}", config)
        needed += [layer + name for name in (*_IN_LAYER.values(), *_QKV, *_GATE_UP)]
        needed += [f"{layer}self_attn.{norm}" for norm in norms]
    for name in needed:
        if name not in theirs:
            raise StoreError(f"not the weights of a Chameleon with {config.layers} layers: {name} is missing")
    return LazyTensors(out)


def _get(weights: Mapping[str, Tensor], name: str) -> Tensor:
    return weights[name]


def _piece(weights: Mapping[str, Tensor], name: str, rows: Sequence[int], part: int) -> Tensor:
    return weights[name].split(list(rows))[part].contiguous()  # type: ignore[no-any-return, no-untyped-call]


def _joined(weights: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([weights[name] for name in names])


def _each_head(weights: Mapping[str, Tensor], name: str, heads: int) -> Tensor:
    shards_SC = weights[name]
    return shards_SC.repeat_interleave(heads // len(shards_SC), 0)


def _each_shard(weights: Mapping[str, Tensor], name: str, config: TransformerConfig) -> Tensor:
    by_shard: Tensor = weights[name].unflatten(0, (config.qk_norm_shards, -1))  # type: ignore[no-untyped-call]
    if not torch.equal(by_shard, by_shard[:, :1].expand_as(by_shard)):
        raise StoreError(
            f"{name}: heads differ within one of {config.qk_norm_shards} shards; expected one set of values a shard. "
            "Set model.qk_norm_shards to the model-parallel size that this checkpoint was trained with."
        )
    return by_shard[:, 0].contiguous()
