"""Which files hold a transformer that somebody else trained: a folder of one of three layouts.

Nothing here reads a weight, so that a fingerprint can be made of these files without torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from infra.errors import StoreError
from infra.storage import Storage
from model.image_tokenizer.foreign_files import ForeignFiles, split_path

Layout = Literal["transformers", "original", "calumma"]
OURS, THEIRS, PARAMS, LATER_PARAMS = "model.json", "config.json", "params.json", "consolidate_params.json"
_CONSOLIDATED = re.compile(r"consolidated(?:\.(\d\d))?\.pth")
_SAFETENSORS = re.compile(r"model(?:-\d{5}-of-(\d{5}))?\.safetensors")


@dataclass(frozen=True)
class ModelFiles:
    """A folder's files."""

    layout: Layout
    weights: ForeignFiles
    descriptions: tuple[str, ...]
    """Small JSON files; what a later one says counts."""

    @property
    def where(self) -> str:
        return self.weights.folder.root

    def digest(self) -> dict[str, str]:
        """The sha256 of each file's content; places and names count for nothing but the order."""
        said = {
            f"description-{number}": hashlib.sha256(self.weights.folder.get(name)).hexdigest()
            for number, name in enumerate(self.descriptions)
        }
        return {"layout": self.layout} | self.weights.digest() | said

    def described(self) -> dict[str, Any]:
        """What the descriptions say; StoreError where one is no JSON object."""
        found: dict[str, Any] = {}
        for name in self.descriptions:
            try:
                said = json.loads(self.weights.folder.get(name))
            except ValueError as e:
                raise StoreError(f"{self.weights.folder.url(name)}: not JSON ({e})") from e
            if not isinstance(said, dict):
                raise StoreError(f"{self.weights.folder.url(name)}: expected an object, got {type(said).__name__}")
            found |= said
        return found

    @contextmanager
    def on_disk(self) -> Iterator[Storage]:
        """A local folder with the weights: the one itself, or copies that go when the context ends."""
        with self.weights.on_disk() as local:
            yield local.folder


def find_model(path: str) -> ModelFiles:
    """The files of a folder, on a disk or on ``s3://``.

    - ``transformers``: ``config.json`` and ``model.safetensors`` or shards with their index;
    - ``original``: ``params.json`` and ``consolidated.pth``, or ``consolidated.00.pth`` and so on;
    - ``calumma``: ``model.json`` and weights as for ``transformers``: a step's folder.

    Raises:
        StoreError: There is no such folder, or files are missing from it.
    """
    parent, name = split_path(path)
    folder = parent.sub(name)
    names = folder.list()
    for layout, description in (("calumma", OURS), ("transformers", THEIRS), ("original", PARAMS)):
        if description in names:
            pattern = _CONSOLIDATED if layout == "original" else _SAFETENSORS
            files = sorted(n for n in names if pattern.fullmatch(n))
            _require_whole(folder, files, pattern)
            later = (LATER_PARAMS,) if layout == "original" and LATER_PARAMS in names else ()
            return ModelFiles(
                layout,  # type: ignore[arg-type]
                ForeignFiles(folder, tuple(files), None),
                (description, *later),
            )
    raise StoreError(
        f"{folder.root}: {f'no {THEIRS}, {PARAMS} or {OURS}' if names else 'no such folder, or an empty one'}. "
        "Expected a folder of transformers, of the original layout (consolidated.pth and params.json), or of Calumma."
    )


def _require_whole(folder: Storage, files: list[str], pattern: re.Pattern[str]) -> None:
    """StoreError where files of a numbered set are missing, or a set and a single file lie together."""
    numbered = [n for n in files if (m := pattern.fullmatch(n)) and m[1] is not None]
    if not files:
        raise StoreError(f"{folder.root}: no weights; expected {_example(pattern)}")
    if not numbered:
        return
    if len(numbered) < len(files):
        raise StoreError(f"{folder.root}: {files[-1]} and {numbered[0]} lie together; expected one set of weights")
    if pattern is _CONSOLIDATED:
        count = 1 + max(int(n.split(".")[1]) for n in numbered)
        wanted = [f"consolidated.{i:02}.pth" for i in range(count)]
    else:
        count = int(numbered[0].split("-of-")[1].split(".")[0])
        wanted = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    if missing := sorted(set(wanted) - set(files)):
        raise StoreError(
            f"{folder.url(missing[0])}: no such file, and {len(files)} of {count} shards are there. Is the copy whole?"
        )


def _example(pattern: re.Pattern[str]) -> str:
    if pattern is _CONSOLIDATED:
        return "consolidated.pth, or consolidated.00.pth and so on"
    return "model.safetensors, or model-00001-of-….safetensors and so on"
