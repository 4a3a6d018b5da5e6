"""An image tokenizer written for others: a ``vqgan.ckpt`` with its YAML, or a folder for ``transformers``."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Literal

import torch
import yaml
from torch import Tensor

from infra.errors import StoreError
from infra.storage import Storage
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.convert import to_taming, to_transformers
from model.image_tokenizer.foreign_files import CONFIG_JSON, SINGLE, split_path

Layout = Literal["vqgan", "transformers"]


def export_weights(config: ImageTokenizerConfig, weights: Mapping[str, Tensor], layout: Layout, to: str) -> list[str]:
    """Writes the tokenizer in another layout; the addresses of the two files written.

    Args:
        config: Its architecture.
        weights: Its weights, float32.
        layout: ``vqgan``: ``to`` is a checkpoint, and its YAML gets the same name. ``transformers``: ``to`` is a
            folder for ``ChameleonVQVAE.from_pretrained``; it holds no decoder, because their class has none.
        to: A path on a disk or on ``s3://``.

    Raises:
        StoreError: There is something at one of these places already, or the layout cannot hold the tokenizer.
    """
    if layout == "vqgan":
        store, name = split_path(to)
        description, state = to_taming(config, weights)
        sink = io.BytesIO()
        torch.save({"state_dict": state}, sink)
        stem = name.rpartition(".")[0] or name
        files = {name: sink.getvalue(), f"{stem}.yaml": yaml.safe_dump(description, sort_keys=False).encode()}
        if len(files) != 2:
            raise StoreError(f"{to}: name the checkpoint, for example vqgan.ckpt; its YAML gets the same name")
    else:
        from safetensors.torch import save

        store = Storage(to)
        arguments, state = to_transformers(config, weights)
        facts = {"architectures": ["ChameleonVQVAE"], "model_type": "chameleon_vqgan", "dtype": "float32", **arguments}
        files = {
            SINGLE: save({name: state[name] for name in sorted(state)}, metadata={"format": "pt"}),
            CONFIG_JSON: (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode(),
        }
    for name in files:
        if store.exists(name):
            raise StoreError(f"{store.url(name)}: exists already; remove it, or name another place with --to")
    store.need(sum(map(len, files.values())), "the exported image tokenizer")
    for name, data in files.items():
        store.put(name, data)
    return [store.url(name) for name in files]
