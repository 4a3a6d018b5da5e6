"""An image tokenizer from somebody else's weights: taming's or Chameleon's ``vqgan.ckpt``, ``transformers``, our own.

Everything becomes float32 by taming's names. Nothing is unpickled: a checkpoint is read with ``weights_only=True``.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from infra.errors import StoreError
from model.image_tokenizer.architecture import FOUND_BY, GROUPS, RESOLUTION, architecture_of, describe
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.foreign_files import ForeignFiles
from model.image_tokenizer.load import FORMAT, has_decoder, parse_config

LEFT_OUT = ("loss.",)
"""What else such checkpoints hold: the networks of the training's losses."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""All of which float32 holds exactly."""


@dataclass(frozen=True)
class Imported:
    """What was read."""

    config: ImageTokenizerConfig
    weights: dict[str, Tensor]
    """float32; without any tensor of the decoder where the file had none."""
    layout: Literal["checkpoint", "safetensors", "calumma"]
    dtype: str
    """Of the file's tensors."""
    left_out: int
    """Tensors that are not the image tokenizer's: a language model's, or of the losses."""

    @property
    def has_decoder(self) -> bool:
        return has_decoder(self.weights)


def import_weights(files: ForeignFiles, resolution: int = RESOLUTION) -> Imported:
    """Reads and checks a tokenizer's files, which must lie on a local disk.

    Args:
        files: See :func:`find_files`.
        resolution: Side of the pictures in pixels, where nothing beside the weights says it.

    Raises:
        StoreError: What they hold is no image tokenizer, cannot be represented, is not finite, or would have to be
            unpickled; the message says what to do.
    """
    described: dict[str, Any] = {"resolution": resolution}
    ours = None
    if files.config is not None:
        store, name = files.config
        description, where = store.get(name), store.url(name)
        if _is_ours(description):
            ours = parse_config(description, where)
            described = ours.model_dump(exclude={"norm_groups"})
        else:
            described |= describe(description, where)
    paths = [files.folder.path(name) for name in files.weights]
    checkpoint = all(map(_is_checkpoint, paths))
    tensors, others = _read_checkpoint(paths[0], files.where) if checkpoint else _read_safetensors(paths, files.where)
    _require_plain(tensors, files.where)
    config = architecture_of(tensors, described, files.where, GROUPS if ours is None else ours.norm_groups)
    _require_finite(tensors, files.where)
    dtypes = sorted({str(w.dtype).removeprefix("torch.") for w in tensors.values()})
    return Imported(
        config,
        # Copies, since tensors that share their memory in the file cannot be saved one by one.
        {name: tensors[name].detach().float().clone(memory_format=torch.contiguous_format) for name in sorted(tensors)},
        "calumma" if ours is not None else "checkpoint" if checkpoint else "safetensors",
        ", ".join(dtypes),
        others,
    )


def _is_ours(description: bytes) -> bool:
    try:
        found = json.loads(description)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and str(found.get("format", "")).startswith(FORMAT.split()[0])


def _is_checkpoint(path: Path) -> bool:
    """Whether torch.save wrote it: a zip or, long ago, a bare pickle. A safetensors file begins with its header."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:9] != b"{" and (head.startswith((b"PK\x03\x04", b"\x80")))


def _read_checkpoint(path: Path, where: str) -> tuple[dict[str, Tensor], int]:
    """The image tokenizer's tensors by taming's names, and how many others there are."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        foreign = re.search(r"GLOBAL (\S+)", str(e))
        raise StoreError(
            f"{path}: holds Python objects beside tensors ({foreign[1] if foreign else str(e).splitlines()[0]}), and "
            "nothing foreign is unpickled here. If you trust the file, save its tensors alone, where the packages that "
            f"wrote it are installed: python -c \"import torch; c = torch.load('{path.name}', map_location='cpu', "
            "weights_only=False); torch.save({'state_dict': c['state_dict']}, 'weights.ckpt')\""
        ) from e
    except Exception as e:  # what torch says of damaged files is of many kinds
        raise StoreError(f"{path}: not a checkpoint that torch can read; is it whole? ({type(e).__name__}: {e})") from e
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, Mapping):
        raise StoreError(f"{path}: holds a {type(found).__name__}; expected state_dict: tensors by name")
    tensors = {name: w for name, w in state.items() if isinstance(name, str) and isinstance(w, Tensor)}
    wanted = _ours(tensors, where)
    return {ours: tensors[name] for name, ours in wanted.items()}, len(tensors) - len(wanted)


def _read_safetensors(paths: list[Path], where: str) -> tuple[dict[str, Tensor], int]:
    """As :func:`_ours`; of a language model beside it nothing is read but the names."""
    from safetensors import SafetensorError, safe_open

    names: dict[str, Path] = {}
    tensors: dict[str, Tensor] = {}
    try:
        for path in paths:
            with safe_open(path, framework="pt") as file:
                names |= dict.fromkeys(file.keys(), path)
        wanted = _ours(names, where)
        for path in paths:
            with safe_open(path, framework="pt") as file:
                tensors |= {ours: file.get_tensor(name) for name, ours in wanted.items() if names[name] == path}
    except (SafetensorError, OSError) as e:
        raise StoreError(f"{path}: neither a safetensors file nor a checkpoint of torch; is it whole? ({e})") from e
    return tensors, len(names) - len(wanted)


def _ours(names: Iterable[str], where: str) -> dict[str, str]:
    """Of these names of tensors the image tokenizer's, each with taming's name for it."""
    names = list(names)
    prefixes = [name.removesuffix(FOUND_BY) for name in names if name.endswith(FOUND_BY)]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} ({', '.join(prefixes)})" if prefixes else "none"
        raise StoreError(
            f"{where}: expected one image tokenizer, so one tensor named …{FOUND_BY}, and found {found} among "
            f"{len(names)} tensors. Calumma reads VQ-GANs in the layout of taming-transformers."
        )
    (prefix,) = prefixes
    ours = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return {name: taming for name, taming in ours.items() if not taming.startswith(LEFT_OUT)}


def _require_plain(tensors: Mapping[str, Tensor], where: str) -> None:
    """Before any value is touched: a file of a few bytes can name a tensor of terabytes."""
    for name, w in tensors.items():
        if w.dtype not in FLOATS:
            raise StoreError(f"{where}: {name} is of type {w.dtype}; expected float32, bfloat16 or float16")
        layout = "nested" if w.is_nested else str(w.layout).removeprefix("torch.")
        kind = w.device.type if layout == "strided" else layout
        if kind != "cpu":
            raise StoreError(f"{where}: {name} is a {kind} tensor; expected one whose values are all in the file")
        if w.numel() == 0:
            raise StoreError(f"{where}: {name} has shape {tuple(w.shape)} and so holds no values; is the file whole?")
        if w.numel() * w.element_size() > w.untyped_storage().nbytes():
            raise StoreError(
                f"{where}: {name} has shape {tuple(w.shape)} and the file holds "
                f"{w.untyped_storage().nbytes()} bytes for it; expected each value to be there"
            )


def _require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, w in tensors.items():
        if not bool(w.isfinite().all()):
            raise StoreError(f"{where}: {name} holds values that are not finite; such weights encode nothing")
