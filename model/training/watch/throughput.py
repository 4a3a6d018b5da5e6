"""How much of a device a training uses: model FLOPs utilisation (MFU) by two counts, over a peak whose origin is said.

MFU is the FLOPs that the tokens of a step need, over what the devices could have done in its time (PaLM, Chowdhery et
al., 2022, appendix B). *full* counts 6 for each weight in a matrix product and attention over all pairs of positions,
12·layers·width·length a token; *causal* counts half of that attention, which is what a causal mask needs. Documents
that do not see each other need less still; recomputed activations count for nothing; padding is not counted.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from model.transformer.config import TransformerConfig

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H200 NVL": 836e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H800": 989e12,
    "H800 PCIe": 756e12,
    "A100": 312e12,
    "A100 PCIe": 312e12,
    "A800": 312e12,
    "A800 PCIe": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10G": 70e12,
    "L4": 121e12,
    "MI300X": 1307e12,
}
"""Nominal dense bf16 FLOP/s by whole words of the device's name (vendors' data sheets)."""

FORMS = frozenset(("pcie", "nvl", "mig", "grid"))
"""Words that make another device, or a part of one, of what bears the same name without them."""

SIDES = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices whose product is timed where the table has no peak."""


@dataclass(frozen=True)
class Throughput:
    """A training's count of FLOPs and what all its workers could do."""

    full: float
    """FLOPs a token, forward and backward, attention over all pairs."""
    causal: float
    peak: float
    """FLOP/s of all workers together."""
    source: str
    """Where the peak is from, in words."""

    @classmethod
    def of(
        cls, config: TransformerConfig, vocabulary: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> Throughput:
        """Of the workers of this process group, on which all call it together; measures where no peak is known."""
        full, causal = flops_per_token(config, vocabulary, length)
        nominal = nominal_peak(device, dtype)
        mine = nominal if nominal is not None else matmul_rate(device, dtype)
        total = torch.tensor(mine, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        precision = str(dtype).removeprefix("torch.")
        how = "nominal" if nominal is not None else "measured by a matrix product at the start"
        return cls(full, causal, float(total), f"{name}, {precision}, {how}, x {dist.get_world_size()}")

    def mfu(self, tokens_per_s: float) -> dict[str, float]:
        """``mfu_full`` and ``mfu_causal``, shares of the peak."""
        return {
            "mfu_full": float(f"{tokens_per_s * self.full / self.peak:.4g}"),
            "mfu_causal": float(f"{tokens_per_s * self.causal / self.peak:.4g}"),
        }


def flops_per_token(config: TransformerConfig, vocabulary: int, length: int) -> tuple[float, float]:
    """Training FLOPs a token of sequences of ``length``: with full attention, and with the causal half of it."""
    full = config.training_flops(vocabulary, length)
    return float(full), float(full - 6 * config.layers * config.dim * length)


def nominal_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """The device's nominal FLOP/s; None where the table does not have exactly it, as for anything but bf16."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = _words(torch.cuda.get_device_name(device))
    return next((p for known, p in PEAKS.items() if _words(known) <= name and not name & FORMS - _words(known)), None)


def _words(name: str) -> set[str]:
    return set(re.split(r"[\s\-_]+", name.lower()))


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of a product of square matrices, the best of three: what this process can reach at most."""
    side = side or SIDES.get(device.type, 1024)
    a = torch.full((side, side), 0.5, device=device, dtype=dtype)  # drawing numbers would move the generator
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(4):  # the first warms up
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, a, out=out)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
