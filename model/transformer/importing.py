"""A transformer that somebody else trained: ``transformers``' folder, the original layout, or our own.

Names and shapes are checked before a weight is read; then the weights come one by one, converted. Nothing is
unpickled: ``consolidated.pth`` is read with ``weights_only=True`` and mapped, not loaded.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from infra.errors import StoreError
from model.transformer.config import TransformerConfig
from model.transformer.convert import from_transformers, from_transformers_config, to_transformers
from model.transformer.foreign_files import ModelFiles
from model.transformer.load import meta_transformer, read_config
from model.transformer.original import PASSED_OVER, config_of, from_original, to_original
from model.transformer.tensors import LazyTensors, SafetensorsFiles

IMAGE_PART = "model.vqmodel."
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ImportedTransformer:
    """What was found."""

    config: TransformerConfig
    """Dropout is 0 where the files do not say."""
    vocabulary_size: int
    weights: Mapping[str, Tensor]
    """Ours, by name; read and converted when asked for, in the files' dtype."""
    dtype: str


@contextmanager
def open_import(files: ModelFiles) -> Iterator[ImportedTransformer]:
    """The transformer of these files, checked; its weights can be asked for inside the context.

    Raises:
        StoreError: on entering, where names or shapes are not those of a model that ours can represent; on asking for
            a weight, where it is not finite, or where shards or heads differ that our form would make one. The text
            names file, tensor, what it is and what was expected.
    """
    with files.on_disk() as folder:
        paths = [folder.path(name) for name in files.weights.weights]
        if files.layout == "original":
            shards = [_load(path) for path in paths]
            where = files.weights.folder.url(files.descriptions[0])
            config, size = _valid(where, lambda: config_of(files.described(), shards[0], len(shards), where))
            expected = to_original(_meta(config, size), config)
            for path, shard, want in zip(paths, shards, expected, strict=True):
                shapes = {name: tuple(w.shape) for name, w in shard.items()}
                _require_shapes(path.name, shapes, want, PASSED_OVER, files.where)
            checked = [_checked(shard, path.name) for path, shard in zip(paths, shards, strict=True)]
            found = from_original(checked, config)
            yield ImportedTransformer(config, size, found, _dtype(shards[0]["norm.weight"]))
            return
        with SafetensorsFiles(paths) as tensors:
            described = files.weights.folder.url(files.descriptions[0])
            if files.layout == "calumma":
                config, size = read_config(files.weights.folder)
                want = _meta(config, size)
            else:
                config, size = _valid(described, lambda: from_transformers_config(files.described()))
                want = to_transformers(_meta(config, size), config)
            shapes = {name: tensors.shape(name) for name in tensors if not name.startswith(IMAGE_PART)}
            _require_shapes(None, shapes, want, (), files.where, tensors.file_of)
            weights = _checked(tensors, files.where)
            found = weights if files.layout == "calumma" else from_transformers(weights, config)
            yield ImportedTransformer(config, size, found, _dtype(tensors[next(iter(want))]))


def _meta(config: TransformerConfig, size: int) -> Mapping[str, Tensor]:
    return meta_transformer(config, size).state_dict()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _valid(where: str, read: object) -> tuple[TransformerConfig, int]:
    """What ``read`` returns; what it finds wrong is said with the file's name."""
    assert callable(read)
    try:
        found: tuple[TransformerConfig, int] = read()
    except ValidationError as e:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'model'}: {f['msg']}" for f in e.errors())
        raise StoreError(f"{where}: not a model that Calumma can represent: {faults}") from e
    except StoreError as e:
        raise e if str(e).startswith(where) else StoreError(f"{where}: {e}") from e
    return found


def _require_shapes(
    file: str | None,
    have: Mapping[str, tuple[int, ...]],
    want: Mapping[str, Tensor],
    passed_over: tuple[str, ...],
    where: str,
    file_of: Mapping[str, Path] | None = None,
) -> None:
    def at(name: str) -> str:
        found = file if file is not None else (file_of or {}).get(name, Path()).name
        return f"{where}/{found}: {name}" if found else f"{where}: {name}"

    for name in want:
        shape = tuple(want[name].shape)
        if name not in have:
            tied = name in ("lm_head.weight", "output.weight")
            why = "; a model with tied embeddings cannot be represented" if tied else ""
            raise StoreError(f"{at(name)} is missing; expected {shape}{why}")
        if have[name] != shape:
            raise StoreError(f"{at(name)} is {have[name]}; expected {shape}")
    for name in have:
        if name not in want and name not in passed_over:
            bias = "; biases of linear layers cannot be represented" if name.endswith(".bias") else ""
            raise StoreError(
                f"{at(name)} is unknown, with shape {have[name]}; Calumma's model has no such tensor{bias}"
            )


def _checked(tensors: Mapping[str, Tensor], where: str) -> Mapping[str, Tensor]:
    """The same tensors, each looked at when it is asked for."""

    def look(name: str) -> Tensor:
        tensor = tensors[name]
        if tensor.dtype not in FLOATS:
            raise StoreError(f"{where}: {name} is of type {tensor.dtype}; expected float32, bfloat16 or float16")
        if not bool(tensor.isfinite().all()):
            raise StoreError(f"{where}: {name} holds values that are not finite; expected numbers")
        return tensor

    return LazyTensors({name: lambda name=name: look(name) for name in tensors})  # type: ignore[misc]


def _load(path: Path) -> dict[str, Tensor]:
    """One shard, mapped: its tensors are read when they are used."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as e:
        foreign = re.search(r"GLOBAL (\S+)", str(e))
        raise StoreError(
            f"{path}: holds Python objects beside tensors ({foreign[1] if foreign else str(e).splitlines()[0]}); "
            "expected tensors by name, since nothing foreign is unpickled here"
        ) from e
    except Exception as e:  # what torch says of damaged files is of many kinds
        raise StoreError(f"{path}: not a checkpoint that torch can map; is it whole? ({type(e).__name__}: {e})") from e
    if not isinstance(found, dict) or not all(isinstance(n, str) and isinstance(w, Tensor) for n, w in found.items()):
        raise StoreError(f"{path}: holds a {type(found).__name__}; expected tensors by name")
    return found
