"""The transformer on storage: ``model.safetensors`` and ``model.json`` (its configuration and vocabulary size)."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from infra.errors import StoreError
from infra.storage import Storage
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer

WEIGHTS = "model.safetensors"
CONFIG = "model.json"
FORMAT = "calumma-transformer"


def save_transformer(
    store: Storage,
    config: TransformerConfig,
    vocabulary_size: int,
    weights: Mapping[str, Tensor],
) -> list[str]:
    """Writes weights and configuration; the names of the files. Tensors keep their dtype."""
    from safetensors.torch import save

    tensors = {name: weights[name].detach().cpu().contiguous() for name in sorted(weights)}
    store.put(WEIGHTS, save(tensors, metadata={"format": "pt"}))
    about = {
        "format": FORMAT,
        "version": 1,
        "vocabulary_size": vocabulary_size,
        "config": config.model_dump(mode="json"),
    }
    store.put(CONFIG, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
    return [CONFIG, WEIGHTS]


def load_transformer(store: Storage, device: torch.device | str = "cpu") -> Transformer:
    """The transformer of a step's folder, in evaluation mode, in the dtype it was stored in.

    Raises:
        StoreError: a file is missing, of another format or version, or the weights do not fit the configuration.
    """
    from safetensors.torch import load

    where = store.url(CONFIG)
    try:
        about = json.loads(store.get(CONFIG))
        if about.get("format") != FORMAT:
            raise StoreError(f"{where}: expected format {FORMAT!r}, found {about.get('format')!r}")
        if about["version"] > 1:
            raise StoreError(f"{where}: format version {about['version']}; this Calumma reads up to 1")
        config, size = TransformerConfig.model_validate(about["config"]), int(about["vocabulary_size"])
        weights = load(store.get(WEIGHTS))
    except (ValueError, KeyError, AttributeError) as e:
        raise StoreError(f"{where}: not a stored transformer ({e})") from e
    with torch.device("meta"):
        model = Transformer(config, size)
    load_weights(model, weights, store.url(WEIGHTS))
    return model.to(device).eval()


def load_weights(model: Transformer, weights: Mapping[str, Tensor], where: str) -> None:
    """Puts ``weights`` in place of the model's; StoreError names what is missing, unknown or of another shape."""
    want = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    have = {name: tuple(w.shape) for name, w in weights.items()}
    if want != have:
        wrong = [f"{n} is {have.get(n, 'missing')}, expected {s}" for n, s in want.items() if have.get(n) != s]
        wrong += [f"{n} is unknown" for n in have if n not in want]
        raise StoreError(f"{where}: {len(wrong)} tensors do not fit the model: {'; '.join(wrong[:5])}")
    model.load_state_dict(dict(weights), assign=True)
    model.requires_grad_(True)
