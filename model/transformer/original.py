"""Our weights in the layout of the original release, and back: one file a model-parallel shard, and ``params.json``.

The names are those of LLaMA's published checkpoints, with ``q_normalization`` and ``k_normalization`` for the QK-norm.
They are taken from public descriptions of the layout (``transformers``' former conversion script among them), not from
a released file: the first real one may show a difference, which loading would name.

Differences from ours, tensor by tensor:

- Rotary channels lie in pairs (2i, 2i + 1), ours in halves (i, i + C/2): the rows of ``wq`` and ``wk`` are permuted
  within each head, and so are weights and biases of the QK-norm.
- ``wq``, ``wk``, ``wv``, ``w1``, ``w3`` and ``output`` are cut by rows, ``wo`` and ``w2`` by columns,
  ``tok_embeddings`` by width; the norms are repeated in every shard; each shard has a QK-norm of its own.

Shape letters: D width, H heads, C channels of a head, S shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from infra.errors import StoreError
from infra.storage import Storage
from model.transformer.config import TransformerConfig
from model.transformer.tensors import LazyTensors

PARAMS = "params.json"
PASSED_OVER = ("rope.freqs",)
"""A table that some such files hold, and that follows from the configuration."""

_ROWS, _COLUMNS, _COPIES = 0, 1, None
_OUTSIDE = {
    "tok_embeddings.weight": ("embedding.weight", _COLUMNS),
    "norm.weight": ("norm.weight", _COPIES),
    "output.weight": ("lm_head.weight", _ROWS),
}
_IN_LAYER = {
    "attention.wo.weight": ("attention.out.weight", _COLUMNS),
    "feed_forward.w2.weight": ("feed_forward.down.weight", _COLUMNS),
    "attention_norm.weight": ("attention_norm.weight", _COPIES),
    "ffn_norm.weight": ("feed_forward_norm.weight", _COPIES),
}
_QKV = ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight")
_GATE_UP = ("feed_forward.w1.weight", "feed_forward.w3.weight")
_NORMS = {
    f"attention.{theirs}.{kind}": f"attention.{ours}.{kind}"
    for theirs, ours in (("q_normalization", "q_norm"), ("k_normalization", "k_norm"))
    for kind in ("weight", "bias")
}


def shard_names(shards: int) -> list[str]:
    """The files' names: ``consolidated.pth``, or ``consolidated.00.pth`` and so on."""
    return ["consolidated.pth"] if shards == 1 else [f"consolidated.{i:02}.pth" for i in range(shards)]


def to_original(weights: Mapping[str, Tensor], config: TransformerConfig) -> list[Mapping[str, Tensor]]:
    """The shards, ``config.qk_norm_shards`` of them, each lazy: a tensor is converted when it is asked for."""
    of = config.qk_norm_shards
    return [LazyTensors(_shard(weights, config, number, of)) for number in range(of)]


def _shard(
    weights: Mapping[str, Tensor], config: TransformerConfig, number: int, of: int
) -> dict[str, Callable[[], Tensor]]:
    kv = config.n_kv_heads * config.head_dim
    qkv_rows, ffn_rows = (0, config.dim, config.dim + kv, config.dim + 2 * kv), (0, config.ffn_dim, 2 * config.ffn_dim)

    def cut(name: str, along: int | None, rows: slice = slice(None), heads: int | None = None) -> Tensor:
        whole = weights[name][rows]
        if heads is not None:
            whole = in_pairs(whole, heads)
        return (whole if along is None else whole.chunk(of, along)[number]).contiguous()

    def norm(name: str) -> Tensor:
        return in_pairs(weights[name][number], 1).contiguous()

    out: dict[str, Callable[[], Tensor]] = {
        theirs: partial(cut, ours, along) for theirs, (ours, along) in _OUTSIDE.items()
    }
    for i in range(config.layers):
        layer = f"layers.{i}."
        out |= {layer + theirs: partial(cut, layer + ours, along) for theirs, (ours, along) in _IN_LAYER.items()}
        for part, (theirs, heads) in enumerate(zip(_QKV, (config.heads, config.n_kv_heads, None), strict=True)):
            here = slice(*qkv_rows[part : part + 2])
            out[layer + theirs] = partial(cut, layer + "attention.qkv.weight", _ROWS, here, heads)
        for part, theirs in enumerate(_GATE_UP):
            here = slice(*ffn_rows[part : part + 2])
            out[layer + theirs] = partial(cut, layer + "feed_forward.gate_up.weight", _ROWS, here)
        if config.qk_norm:
            out |= {layer + theirs: partial(norm, layer + ours) for theirs, ours in _NORMS.items()}
    return out


def from_original(shards: Sequence[Mapping[str, Tensor]], config: TransformerConfig) -> Mapping[str, Tensor]:
    """Our weights from the shards, lazily; whether all are there in the right shapes, ``importing.py`` has checked.

    Raises:
        StoreError: when a norm is asked for, where the shards' copies of it differ, which one model cannot hold.
    """

    def join(name: str, along: int | None) -> Tensor:
        parts = [shard[name] for shard in shards]
        if along is not None:
            return torch.cat(parts, along)
        for number, part in enumerate(parts):
            if not torch.equal(part, parts[0]):
                at = int((part != parts[0]).nonzero()[0])
                raise StoreError(
                    f"{name}: is {float(part[at]):g} at {at} in shard {number} and {float(parts[0][at]):g} in shard 0; "
                    "expected the same in all shards, since Calumma's model keeps one"
                )
        return parts[0].clone()

    def qkv(layer: str) -> Tensor:
        heads = (config.heads, config.n_kv_heads, None)
        parts = [(join(layer + name, _ROWS), h) for name, h in zip(_QKV, heads, strict=True)]
        return torch.cat([part if h is None else in_halves(part, h) for part, h in parts])

    def gate_up(layer: str) -> Tensor:
        return torch.cat([join(layer + name, _ROWS) for name in _GATE_UP])

    def norm(name: str) -> Tensor:
        return torch.stack([in_halves(shard[name], 1) for shard in shards])

    out: dict[str, Callable[[], Tensor]] = {
        ours: partial(join, theirs, along) for theirs, (ours, along) in _OUTSIDE.items()
    }
    for i in range(config.layers):
        layer = f"layers.{i}."
        out |= {layer + ours: partial(join, layer + theirs, along) for theirs, (ours, along) in _IN_LAYER.items()}
        out[layer + "attention.qkv.weight"] = partial(qkv, layer)
        out[layer + "feed_forward.gate_up.weight"] = partial(gate_up, layer)
        if config.qk_norm:
            out |= {layer + ours: partial(norm, layer + theirs) for theirs, ours in _NORMS.items()}
    return LazyTensors(out)


def in_pairs(halves: Tensor, heads: int) -> Tensor:
    """Rows (H·C, …) whose rotary channels lie in halves within each head, with these channels in pairs."""
    return halves.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(halves.shape)  # type: ignore[no-any-return, no-untyped-call]


def in_halves(pairs: Tensor, heads: int) -> Tensor:
    """The inverse of :func:`in_pairs`."""
    return pairs.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(pairs.shape)  # type: ignore[no-any-return, no-untyped-call]


def params_of(config: TransformerConfig, vocabulary_size: int) -> dict[str, Any]:
    """The content of ``params.json``."""
    return {
        "dim": config.dim,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": config.n_kv_heads,
        "ffn_dim": config.ffn_dim,
        "vocab_size": vocabulary_size,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "swin_norm": config.norm == "reordered",
        "qk_normalization": config.qk_norm,
        "model_parallel_size": config.qk_norm_shards,
    }


def config_of(
    params: Mapping[str, Any], first: Mapping[str, Tensor], shards: int, where: str
) -> tuple[TransformerConfig, int]:
    """Our configuration and the vocabulary's size, from ``params.json`` and the shapes in the first shard.

    ``params.json`` says what shapes do not: heads, norm order, epsilon, rotary base. Dropout is 0.

    Raises:
        StoreError: something is missing, or contradicts.
    """
    size = params.get("model_parallel_size", shards)
    model = params.get("model", params)  # the release nests the model's parameters among the training's
    if size != shards:
        raise StoreError(f"{where}: model_parallel_size is {size}, and {shards} files are there; expected {size}")
    try:
        return TransformerConfig(
            dim=model["dim"],
            layers=model["n_layers"],
            heads=model["n_heads"],
            kv_heads=model.get("n_kv_heads") or model["n_heads"],
            ffn=first["layers.0.feed_forward.w1.weight"].shape[0] * shards,
            norm="reordered" if model["swin_norm"] else "pre",
            dropout=0.0,
            qk_norm="layers.0.attention.q_normalization.weight" in first,
            qk_norm_shards=shards,
            norm_eps=model["norm_eps"],
            rope_theta=model.get("rope_theta", 10_000.0),
        ), first["tok_embeddings.weight"].shape[0]
    except (KeyError, TypeError) as e:
        raise StoreError(f"{where}: {e} is missing there or in the first shard; expected a model of this layout") from e


def save_original(
    store: Storage, config: TransformerConfig, vocabulary_size: int, weights: Mapping[str, Tensor]
) -> list[str]:
    """Writes the shards, one after the other, and ``params.json``; their names."""
    names = shard_names(config.qk_norm_shards)
    store.put(PARAMS, (json.dumps(params_of(config, vocabulary_size), indent=1) + "\n").encode())
    for name, shard in zip(names, to_original(weights, config), strict=True):
        # A clone, since torch.save would write all of the larger tensor that a part is a view of.
        with store.writing(name) as path, path.open("wb") as file:  # of a path torch would use the name
            torch.save({tensor: shard[tensor].clone() for tensor in shard}, file)
    return [PARAMS, *names]
