"""Our weights as ``transformers``' Chameleon classes name and shape them, and back.

Differences: they keep queries, keys and values in three matrices, gate and up in two, and repeat the QK-norm of a shard
for each of its heads. Rotary channels are split in halves in both, so nothing is permuted. Their QK-norm has a fixed
epsilon of 1e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infra.errors import StoreError
from model.transformer.config import TransformerConfig

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


def to_transformers(weights: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """The state of ``ChameleonForConditionalGeneration`` without the image tokenizer's part (``model.vqmodel``)."""
    kv = config.n_kv_heads * config.head_dim
    out = {theirs: weights[ours] for ours, theirs in _PLAIN.items()}
    for i in range(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        out |= {theirs + name: weights[ours + mine] for mine, name in _IN_LAYER.items()}
        qkv = weights[ours + "attention.qkv.weight"].split([config.dim, kv, kv])  # type: ignore[no-untyped-call]
        out |= {theirs + name: part for name, part in zip(_QKV, qkv, strict=True)}
        halves = weights[ours + "feed_forward.gate_up.weight"].chunk(2)
        out |= {theirs + name: part for name, part in zip(_GATE_UP, halves, strict=True)}
        for norm, heads in (("q_norm", config.heads), ("k_norm", config.n_kv_heads)):
            for kind in ("weight", "bias"):
                shards_SC = weights[f"{ours}attention.{norm}.{kind}"]
                out[f"{theirs}self_attn.{norm}.{kind}"] = shards_SC.repeat_interleave(heads // len(shards_SC), 0)
    return {name: tensor.contiguous() for name, tensor in out.items()}


def from_transformers(theirs: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Our weights from theirs; ``model.vqmodel`` is passed over.

    Raises:
        StoreError: a tensor is missing, or heads within one QK-norm shard differ, which our form would lose.
    """
    try:
        out = {ours: theirs[name] for ours, name in _PLAIN.items()}
        for i in range(config.layers):
            ours, layer = f"layers.{i}.", f"model.layers.{i}."
            out |= {ours + mine: theirs[layer + name] for mine, name in _IN_LAYER.items()}
            out[ours + "attention.qkv.weight"] = torch.cat([theirs[layer + name] for name in _QKV])
            out[ours + "feed_forward.gate_up.weight"] = torch.cat([theirs[layer + name] for name in _GATE_UP])
            for norm in ("q_norm", "k_norm"):
                for kind in ("weight", "bias"):
                    name = f"{layer}self_attn.{norm}.{kind}"
                    by_shard = theirs[name].unflatten(0, (config.qk_norm_shards, -1))  # type: ignore[no-untyped-call]
                    if not torch.equal(by_shard, by_shard[:, :1].expand_as(by_shard)):
                        raise StoreError(
                            f"{name}: heads differ within one of {config.qk_norm_shards} shards. Set "
                            "model.qk_norm_shards to the model-parallel size that this checkpoint was trained with."
                        )
                    out[f"{ours}attention.{norm}.{kind}"] = by_shard[:, 0]
    except KeyError as e:
        raise StoreError(f"not the weights of a Chameleon with {config.layers} layers: {e.args[0]} is missing") from e
    return {name: tensor.contiguous() for name, tensor in out.items()}
