"""The backends of attention beside each other: parity forward and backward, and how long each takes.

    python -m benchmarks.attention [--json] [--device cuda] [--rounds 5]

Rows of 4,096 positions full of documents, whose lengths are those of real captions with a picture, texts, programs and
illustrated pages in the paper's proportions (quantiles of what ``benchmarks.packing`` draws, so that a machine without
that data can run this). Every backend gets the same queries, keys and values in bf16 on a GPU and float32 on a CPU.

- Parity: outputs and gradients against the one written out in float32 (``reference``), on a row of 512 positions with
  padding, with as many key heads as heads and with a quarter of them. A backend passes if its error is at most
  twice that of ``reference`` itself in that dtype, plus a hair; one that does not ends the run with an error.
- ``NAME_ms``: forward and backward together, the mask or borders made anew in every forward as training does;
  ``NAME_forward_ms``: the forward alone. ``whole_NAME_ms``: the same without documents, every row one.
- ``NAME_tflops``: of the causal products within documents, 3.5 times the forward's; what is masked but computed anyway
  counts for nothing.
- ``auto``: what the machine would be given; ``auto_ratio``: the time of ``sdpa`` with a mask over that of ``auto``.

On a CPU it runs at small size, and flex forward only: torch has no backward pass of it there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import emit, machine_line, median
from infra.errors import CalummaError
from model.transformer.backends import BACKENDS, PADDING, Backend, choose, prepare, unavailable

QUANTILES = (
    *(19, 150, 236, 369, 575, 927, 1037, 1039, 1040, 1040, 1040, 1041, 1041, 1042, 1042, 1042, 1043, 1043, 1044, 1044),
    *(1045, 1045, 1046, 1047, 1048, 1049, 1052, 1054, 1060, 1068, 1082, 1119, 1218, 1674, 2391, 3034),
    *(4096, 4096, 4096, 4096, 4096),
)
"""Lengths of documents in tokens at the quantiles 0, 1/40, … 1; longer ones are cut at 4,096."""
PARITY_LENGTH = 512
HAIR = 1e-5


class Inputs:
    """Queries, keys, values and the gradient of the output, the same for every backend."""

    def __init__(
        self, rows: int, length: int, heads: int, kv: int, channels: int, device: str, dtype: torch.dtype
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def made(h: int) -> Tensor:
            return torch.randn(rows, h, length, channels, generator=generator).to(device, dtype)

        self.q, self.k, self.v, self.d_out = made(heads), made(kv), made(kv), made(heads)

    def run(self, backend: Backend, documents: Tensor | None, backward: bool = True) -> list[Tensor]:
        """Output and gradients of q, k and v; the output alone without ``backward``."""
        q, k, v = (x.detach().requires_grad_(backward) for x in (self.q, self.k, self.v))
        out = prepare(backend, documents, len(q), q.shape[2], q.device, q.dtype)(q, k, v)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), self.d_out)] if backward else [out]


def documents_of(rows: int, length: int, rng: np.random.Generator, padding: int = 0) -> Tensor:
    """Rows full of documents, int32 (rows, length); the last ``padding`` positions of the last row are padding."""
    made = np.empty((rows, length), np.int32)
    for row in made:
        at = number = 0
        while at < length:
            size = int(np.interp(rng.random(), np.linspace(0, 1, len(QUANTILES)), QUANTILES))
            row[at : at + size] = number
            at, number = at + size, number + 1
    if padding:
        made[-1, -padding:] = PADDING
    return torch.from_numpy(made)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one row of 1,024 with 4 heads of 32, for CPUs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.small:
        args.rows, args.length, args.heads, args.channels = 1, 1024, 4, 32
    device, dtype = args.device, torch.bfloat16 if args.device.startswith("cuda") else torch.float32
    print(machine_line("xformers", "triton"))
    figures: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "rows": args.rows, "length": args.length}
    found = offered(device, dtype, args.channels)
    compared = forward_only(device)
    figures["missing"] = {name: why for name, why in found.items() if why is not None and name not in compared}
    for name, why in figures["missing"].items():
        print(f"{name}: not here: {why}")
    backends = [name for name in BACKENDS if name not in figures["missing"]]
    figures |= parity(backends, device, dtype, args.heads, args.channels)
    figures |= speeds(backends, args, dtype)
    figures["auto"] = choose("auto", torch.device(device), dtype, args.channels)
    figures["auto_ratio"] = figures["sdpa_ms"] / figures[f"{figures['auto']}_ms"]
    emit(figures, args.json)


def offered(device: str, dtype: torch.dtype, channels: int) -> dict[Backend, str | None]:
    """Why each backend is not there; None where it is."""
    return {name: unavailable(name, device, dtype, channels) for name in BACKENDS}


def forward_only(device: str) -> tuple[Backend, ...]:
    """Backends without a backward pass on this device, which are compared all the same."""
    return ("flex",) if device == "cpu" else ()


def parity(backends: Sequence[Backend], device: str, dtype: torch.dtype, heads: int, channels: int) -> dict[str, float]:
    """The largest error of each backend relative to the largest value, over outputs and gradients.

    Raises:
        CalummaError: A backend is further from float32 than rounding explains.
    """
    documents = documents_of(2, PARITY_LENGTH, np.random.default_rng(1), padding=57).to(device)
    figures: dict[str, float] = {}
    for kv in (heads, max(1, heads // 4)):
        inputs = Inputs(2, PARITY_LENGTH, heads, kv, channels, device, dtype)
        exact = Inputs(2, PARITY_LENGTH, heads, kv, channels, device, dtype)
        for name in ("q", "k", "v", "d_out"):
            setattr(exact, name, getattr(inputs, name).float())
        for pattern in (documents, None):
            want = exact.run("reference", pattern)
            allowed = 2 * _error(inputs.run("reference", pattern), want) + HAIR
            for name in backends:
                backward = name not in forward_only(device)
                have = inputs.run(name, pattern, backward)
                error = _error(have, want[: len(have)])
                figures[f"{name}_error"] = max(error, figures.get(f"{name}_error", 0.0))
                if not error <= allowed:
                    raise CalummaError(
                        f"{name} with {kv} key heads on {device}: error {error:.2e}; at most {allowed:.2e} was "
                        "expected. Do not train with it here; set resources.attention_backend to another."
                    )
    return figures


def _error(have: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    return max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(have, want, strict=True))


def speeds(backends: Sequence[Backend], args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds and TFLOP/s; the backends take turns."""
    documents = documents_of(args.rows, args.length, np.random.default_rng(0)).to(args.device)
    inputs = Inputs(args.rows, args.length, args.heads, args.heads, args.channels, args.device, dtype)
    counts = [torch.unique(row, return_counts=True)[1].double() for row in documents]
    figures: dict[str, Any] = {"documents_a_row": sum(map(len, counts)) / args.rows}
    products = sum(float((c * (c + 1) / 2).sum()) for c in counts) * args.heads
    flops = 3.5 * 4 * products * args.channels
    runs: dict[str, Callable[[], object]] = {}
    for name in backends:
        for prefix, pattern in (("", documents), ("whole_", None)):
            if name not in forward_only(args.device):
                runs[f"{prefix}{name}_ms"] = lambda n=name, p=pattern: inputs.run(n, p)  # type: ignore[misc]
            if not prefix:
                runs[f"{name}_forward_ms"] = lambda n=name, p=pattern: inputs.run(n, p, False)  # type: ignore[misc]
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(args.rounds + 2):  # the first two are warm-up: kernels compile
        for name, work in runs.items():
            _wait(args.device)
            begun = time.perf_counter()
            work()
            _wait(args.device)
            if number > 1:
                taken[name].append((time.perf_counter() - begun) * 1e3)
    figures |= {name: median(values) for name, values in taken.items()}
    figures |= {f"{n}_tflops": flops / figures[f"{n}_ms"] / 1e9 for n in backends if f"{n}_ms" in figures}
    return figures


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
