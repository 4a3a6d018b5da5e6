"""Tensors by name that are read or made only when asked for, and their files: safetensors, in shards where large.

A 34B model in float32 is 137 GB. Whoever converts, imports or exports one holds a shard of it at a time, never two
copies of the whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.errors import ResourceError, StoreError
from infra.storage import Storage

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 4_000_000_000
"""The largest shard, unless somebody says otherwise."""


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for and not kept."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class SafetensorsFiles(LazyTensors):
    """The tensors of safetensors files on a local disk. A context: on leaving it the files are closed."""

    def __init__(self, paths: list[Path]) -> None:
        """StoreError where one is no safetensors file."""
        from safetensors import SafetensorError, safe_open

        self.file_of: dict[str, Path] = {}
        """The file that each tensor lies in."""
        self._stack, makers = ExitStack(), {}
        self._files: dict[str, Any] = {}
        for path in paths:
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as e:
                self._stack.close()
                raise StoreError(f"{path}: not a safetensors file; is it whole? ({e})") from e
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                makers[name] = _reader(file, name)
                self.file_of[name], self._files[name] = path, file
        super().__init__(makers)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def __enter__(self) -> SafetensorsFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _reader(file: Any, name: str) -> Callable[[], Tensor]:
    return lambda: file.get_tensor(name)


def plan_shards(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Names in their order, cut into shards of at most ``shard_bytes``; a larger tensor has a shard of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def save_tensors(
    store: Storage,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes ``model.safetensors``, or numbered shards and their index as ``transformers`` reads them; the names.

    Args:
        tensors: Asked for one by one, in the order of ``shapes``; written as ``dtype``.
        shapes: Of all of them, known beforehand, so that the shards can be planned.

    Raises:
        ResourceError: There is no room for one, where it belongs or in scratch.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    sizes = {name: dtype.itemsize * torch.Size(shape).numel() for name, shape in shapes.items()}
    shards = plan_shards(sizes, shard_bytes)
    of = len(shards)
    names = [WEIGHTS] if of == 1 else [f"model-{i:05}-of-{of:05}.safetensors" for i in range(1, of + 1)]
    for file, shard in zip(names, shards, strict=True):
        # Tensors may be parts of larger ones; only what is copied is contiguous and shares nothing.
        held = {n: tensors[n].detach().to("cpu", dtype).contiguous().clone() for n in sorted(shard)}
        try:
            with store.writing(file) as path:
                save_file(held, path, metadata={"format": "pt"})
        except SafetensorError as e:
            raise ResourceError(
                f"{store.url(file)}: could not be written ({e}). Is the disk full? Free some space (in TMPDIR, "
                "where the store is on S3), then run again."
            ) from e
        del held
    store.delete(INDEX if of == 1 else WEIGHTS)  # of weights that lay here before, cut otherwise
    if of == 1:
        return names
    where = {tensor: file for file, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    store.put(INDEX, (json.dumps(index, indent=1, sort_keys=True) + "\n").encode())
    return [*names, INDEX]


def weight_files(store: Storage) -> list[str]:
    """The safetensors files of a folder: the one, or those that its index names.

    Raises:
        StoreError: There are none, one is missing, or the index is none.
    """
    if store.exists(WEIGHTS):
        return [WEIGHTS]
    if not store.exists(INDEX):
        raise StoreError(f"{store.url(WEIGHTS)}: no such file, and no {INDEX} beside it")
    where = store.url(INDEX)
    try:
        files = set(dict(json.loads(store.get(INDEX))["weight_map"]).values())
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise StoreError(f"{where}: not an index of safetensors files ({type(e).__name__}: {e})") from e
    wrong = [f for f in files if not isinstance(f, str) or "/" in f or "\\" in f]
    if wrong or not files:
        raise StoreError(f"{where}: names {wrong[0] if wrong else 'no file'!r}; expected files of the same folder")
    for name in sorted(files):
        if not store.exists(name):
            raise StoreError(f"{store.url(name)}: no such file; {INDEX} beside it names it. Is the copy whole?")
    return sorted(files)
