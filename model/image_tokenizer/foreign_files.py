"""Which files hold an image tokenizer that somebody else made: one file, or a folder, and what describes it.

Nothing here reads a weight, so that a fingerprint can be made of these files without torch.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from infra.errors import StoreError
from infra.storage import Storage

CONFIG_JSON, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
IN_CHAMELEON = "vqmodel."
CHUNK = 16 << 20


@dataclass(frozen=True)
class ForeignFiles:
    """Files by name, in one folder; ``config`` may lie elsewhere."""

    folder: Storage
    weights: tuple[str, ...]
    """One file, or the shards that hold the image tokenizer."""
    config: tuple[Storage, str] | None
    """taming's YAML, ``transformers``' or our own ``config.json``."""

    @property
    def where(self) -> str:
        """The address to name in messages."""
        return self.folder.url(self.weights[0]) if len(self.weights) == 1 else self.folder.root

    def digest(self) -> dict[str, str]:
        """The sha256 of each file's content; places and names count for nothing but the order of shards."""
        files = [(self.folder, name) for name in self.weights]
        found = {f"weights-{number}": sha256_of(*file) for number, file in enumerate(files)}
        return found | ({"config": sha256_of(*self.config)} if self.config else {})

    @contextmanager
    def on_disk(self) -> Iterator[ForeignFiles]:
        """These files on a local disk: themselves, or copies that go when the context ends."""
        with self.folder.on_disk(self.weights) as folder:
            yield ForeignFiles(Storage(folder), self.weights, self.config)


def find_files(path: str, config: str | None = None) -> ForeignFiles:
    """The files of a tokenizer.

    Args:
        path: On a disk or on ``s3://``: a checkpoint or safetensors file, or a folder as ``transformers`` or Calumma
            writes it (``model.safetensors``, or shards with their index, beside ``config.json``).
        config: The description, where it is not beside the weights: for a file taming's YAML of the same name
            (``vqgan.yaml`` for ``vqgan.ckpt``) or ``config.json``.

    Raises:
        StoreError: There is no such file or folder, or a folder has no weights in it.
    """
    parent, name = split_path(path)
    described = None
    if config is not None:
        described = split_path(config)
        if described[0].info(described[1]) is None:
            raise StoreError(f"{described[0].url(described[1])}: no such file; it was named as the configuration")
    if parent.info(name) is not None:
        stem = name.rpartition(".")[0] or name
        beside = [f"{stem}.yaml", f"{stem}.yml", *([CONFIG_JSON] if name.endswith(".safetensors") else [])]
        return ForeignFiles(parent, (name,), described or _first(parent, beside))
    folder = parent.sub(name)
    if folder.exists(SINGLE):
        return ForeignFiles(folder, (SINGLE,), described or _first(folder, [CONFIG_JSON]))
    if folder.exists(INDEX):
        return ForeignFiles(folder, _shards(folder), described or _first(folder, [CONFIG_JSON]))
    raise StoreError(
        f"{folder.root}: no such file, and no folder with {SINGLE} or {INDEX} in it. Expected a vqgan.ckpt, a "
        "safetensors file, or a folder as transformers or Calumma writes it."
    )


def split_path(path: str) -> tuple[Storage, str]:
    """The storage of a path's folder, and the name in it."""
    whole = path if "://" in path else str(Path(path).expanduser().resolve())
    parent, _, name = whole.rstrip("/").rpartition("/")
    return Storage(parent), name


def _first(folder: Storage, names: list[str]) -> tuple[Storage, str] | None:
    return next(((folder, name) for name in names if folder.info(name) is not None), None)


def _shards(folder: Storage) -> tuple[str, ...]:
    """The files that the index names for the image tokenizer; for all tensors where it is nothing but one."""
    where = folder.url(INDEX)
    try:
        tensors = json.loads(folder.get(INDEX))["weight_map"]
        if not isinstance(tensors, dict):
            raise TypeError(f"weight_map is a {type(tensors).__name__}")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise StoreError(f"{where}: not an index of safetensors files ({type(e).__name__}: {e})") from e
    wrong = [f for f in tensors.values() if not isinstance(f, str) or "/" in f or "\\" in f or not f.isprintable()]
    if wrong or not tensors:
        raise StoreError(
            f"{where}: names {reprlib.repr(wrong[0]) if wrong else 'no file'}; expected files of the same folder"
        )
    files = {file for name, file in tensors.items() if IN_CHAMELEON in name} or set(tensors.values())
    for name in sorted(files):
        if folder.info(name) is None:
            raise StoreError(f"{folder.url(name)}: no such file; {INDEX} beside it names it. Is the download whole?")
    return tuple(sorted(files))


def sha256_of(folder: Storage, name: str) -> str:
    """The sha256 of a file's content, read once a process as long as the file's size and stamp stay the same."""
    info = folder.info(name)
    return _sha256_of(folder.root, name, info.size if info else 0, info.stamp if info else "")


@lru_cache
def _sha256_of(root: str, name: str, size: int, stamp: str) -> str:
    """Fingerprints are asked for often; ``size`` and ``stamp`` say which state of the file is meant."""
    folder, found = Storage(root), hashlib.sha256()
    for chunk in _chunks(folder, name):
        found.update(chunk)
    return found.hexdigest()


def _chunks(folder: Storage, name: str) -> Iterator[bytes]:
    with folder.open(name) as file:
        while chunk := file.read(CHUNK):
            yield chunk
