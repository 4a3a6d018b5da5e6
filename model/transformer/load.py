"""The transformer on storage: ``model.safetensors`` or shards of it, and ``model.json``: configuration, vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from infra.errors import StoreError
from infra.storage import Storage
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer
from model.transformer.tensors import SHARD_BYTES, SafetensorsFiles, save_tensors, weight_files

CONFIG = "model.json"
FORMAT = "calumma-transformer"


def save_transformer(
    store: Storage,
    config: TransformerConfig,
    vocabulary_size: int,
    weights: Mapping[str, Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes weights and configuration; the names of the files. Tensors keep the dtype of ``lm_head.weight``.

    The weights are asked for one after the other, so that those of a lazy mapping are never all in memory.
    """
    shapes = shapes_of(config, vocabulary_size)
    dtype = weights["lm_head.weight"].dtype
    files = save_tensors(store, weights, {name: shapes[name] for name in sorted(shapes)}, dtype, shard_bytes)
    about = {
        "format": FORMAT,
        "version": 1,
        "vocabulary_size": vocabulary_size,
        "config": config.model_dump(mode="json"),
    }
    store.put(CONFIG, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
    return [CONFIG, *files]


def load_transformer(store: Storage, device: torch.device | str = "cpu") -> Transformer:
    """The transformer of a step's folder, in evaluation mode, in the dtype it was stored in.

    Raises:
        StoreError: a file is missing, of another format or version, or the weights do not fit the configuration.
    """
    config, size = read_config(store)
    model = meta_transformer(config, size)
    with open_weights(store) as weights:
        load_weights(model, {name: weights[name] for name in weights}, store.url())
    return model.to(device).eval()


def read_weights(store: Storage, model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The weights of a step's folder, float32, by name in the order of ``model``'s parameters; one at a time.

    Raises:
        StoreError: a file is missing, or the weights do not fit ``model``, which may be on the meta device.
    """
    names = [name for name, _ in model.named_parameters()]
    with open_weights(store) as weights:
        _require_fit(model, {name: weights.shape(name) for name in weights}, store.url())
        for name in names:
            yield name, weights[name].float()


def read_config(store: Storage) -> tuple[TransformerConfig, int]:
    """Configuration and vocabulary size of a step's folder; StoreError as :func:`load_transformer`."""
    where = store.url(CONFIG)
    try:
        about = json.loads(store.get(CONFIG))
        if about.get("format") != FORMAT:
            raise StoreError(f"{where}: expected format {FORMAT!r}, found {about.get('format')!r}")
        if about["version"] > 1:
            raise StoreError(f"{where}: format version {about['version']}; this Calumma reads up to 1")
        return TransformerConfig.model_validate(about["config"]), int(about["vocabulary_size"])
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise StoreError(f"{where}: not a stored transformer ({e})") from e


@contextmanager
def open_weights(store: Storage) -> Iterator[SafetensorsFiles]:
    """The weights of a folder of safetensors files, read as they are asked for; from S3 by way of a local copy."""
    names = weight_files(store)
    with store.on_disk(names) as folder, SafetensorsFiles([folder / name for name in names]) as weights:
        yield weights


def meta_transformer(config: TransformerConfig, vocabulary_size: int) -> Transformer:
    """A transformer without weights: names and shapes."""
    with torch.device("meta"):
        return Transformer(config, vocabulary_size)


def shapes_of(config: TransformerConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a transformer's weights, by name."""
    return {name: tuple(w.shape) for name, w in meta_transformer(config, vocabulary_size).state_dict().items()}


def load_weights(model: Transformer, weights: Mapping[str, Tensor], where: str) -> None:
    """Puts ``weights`` in place of the model's; StoreError names what is missing, unknown or of another shape."""
    _require_fit(model, {name: tuple(w.shape) for name, w in weights.items()}, where)
    model.load_state_dict(dict(weights), assign=True)
    model.requires_grad_(True)


def _require_fit(model: Transformer, have: Mapping[str, tuple[int, ...]], where: str) -> None:
    want = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    if want != have:
        wrong = [f"{n} is {have.get(n, 'missing')}, expected {s}" for n, s in want.items() if have.get(n) != s]
        wrong += [f"{n} is unknown" for n in have if n not in want]
        raise StoreError(f"{where}: {len(wrong)} tensors do not fit the model: {'; '.join(wrong[:5])}")
