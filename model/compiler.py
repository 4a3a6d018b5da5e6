"""What torch.compile needs from the machine, said before it is tried."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil

from infra.errors import ResourceError


def require_compiler(key: str, device: str) -> None:
    """ResourceError where ``torch.compile`` would find no compiler for ``device`` ("cpu" or "cuda").

    ``key`` is what in the recipe asks for it.
    """
    variable, usual = ("CXX", "g++") if device == "cpu" else ("CC", "gcc")
    command = os.environ.get(variable, usual)
    if shutil.which((shlex.split(command) or [""])[0]) is None:
        raise ResourceError(
            f"{key} is true, and torch.compile finds no compiler here: there is no {command!r}. Install "
            f"{usual}, name another in the environment variable {variable}, or set {key}: false."
        )
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise ResourceError(
            f"{key} is true, and torch.compile needs the package triton on a GPU. Install the build of torch "
            f"for your GPU, which brings it, or set {key}: false."
        )
