"""How an encoder is run fast: lower precision where it is safe, exact float32 where it is not, compiled, memory kept.

What ``precision: bf16`` lowers: the encoder's convolutions and its attention, and with them the activations between
them, which is where nearly all arithmetic and memory traffic is. What stays float32: the statistics of GroupNorm (sums
over a million values), the last norm, the last convolution and ``quant_conv`` (they are one part in 200 of the work,
and what they round is what is compared), and the search for the nearest code. GroupNorm's factors and summands stay
float32 on CPUs and wherever it is compiled; uncompiled on a GPU they are rounded to bf16, since torch's kernel there
takes one type only.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from model.compiler import require_compiler
from model.image_tokenizer.vqgan import Encoder

Precision = Literal["fp32", "bf16"]


def lower(encoder: Encoder) -> None:
    """Makes the encoder compute in bf16, all but what the module's head names. Its float32 weights are gone then."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Conv2d) and name != "conv_out":
            module.to(torch.bfloat16)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 means float32 within: no TF32 or bf16 inside convolutions and products. Then all is as it was before."""
    backends = torch.backends
    settings: tuple[Any, ...] = (
        backends.cuda.matmul,
        backends.cudnn.conv,  # type: ignore[attr-defined]
        backends.mkldnn.matmul,  # type: ignore[attr-defined]
        backends.mkldnn.conv,  # type: ignore[attr-defined]
    )
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = "none"  # which follows a wider setting, and may be what it was
            if setting.fp32_precision != value:
                setting.fp32_precision = value


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function through ``torch.compile``, for one shape of input; its first call takes a minute or so.

    Raises:
        ResourceError: ``torch.compile`` finds no compiler here. There is no quiet way round: codes may differ in the
            last bit from those of the function as it is.
    """
    require_compiler("encode.compile", device.type)
    return torch.compile(function, dynamic=False)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Of glibc's ``malloc.h``."""


def keep_freed_memory() -> bool:
    """Has this process keep freed memory for its next tensors; whether that could be arranged (it needs glibc).

    Otherwise every activation of more than 32 MiB is fresh memory from the kernel, page by page: at 512x512 a fifth of
    the encoder's time on a CPU. The price is that the process stays as large as it once was, so it is for workers.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 << 20))
    return [mallopt(name, value) for name, value in settings] == [1] * len(settings)
