"""Encoders to compare: ours and ``transformers``' with the same weights, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from model.image_tokenizer.config import ImageTokenizerConfig
    from model.image_tokenizer.load import ImageTokenizer

Encode = Callable[["Tensor"], "Tensor"]
"""Pictures (B, 3, side, side) uint8 on the device to codes (B·N)."""


@dataclass(frozen=True)
class Contender:
    """A way to encode."""

    ours: bool
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False
    """Of the peer; ours always is."""
    kept: bool = False
    """Whether the process keeps freed memory, as the step's workers do."""


def random_tokenizer(config: ImageTokenizerConfig, folder: Path, pictures: np.ndarray[Any, Any]) -> None:
    """Writes a tokenizer with random, seeded weights and a codebook spread among its latents of the pictures."""
    import torch

    from infra.storage import Storage
    from model.image_tokenizer.load import save_image_tokenizer
    from model.image_tokenizer.vqgan import VQModel, normalise

    torch.manual_seed(0)
    model = VQModel(config).eval()
    with torch.inference_mode():
        z_BDHW = model.latents(normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2)))
        latents_ND = z_BDHW.permute(0, 2, 3, 1).reshape(-1, config.embed_dim)
        entries_KD = latents_ND[torch.randint(len(latents_ND), (config.codes,))]
        model.quantize.embedding.weight.copy_(entries_KD + 0.1 * latents_ND.std(0) * torch.randn_like(entries_KD))
    save_image_tokenizer(Storage(folder), config, model.state_dict())


def encoder_of(contender: Contender, folder: Path, device: str) -> tuple[Encode, ImageTokenizer | None]:
    """The way to encode with the weights in ``folder``, and our tokenizer if it is ours."""
    import torch

    from infra.storage import Storage
    from model.image_tokenizer.convert import to_transformers
    from model.image_tokenizer.load import load_image_tokenizer, read_image_tokenizer
    from model.image_tokenizer.vqgan import normalise

    if contender.ours:
        tokenizer = load_image_tokenizer(
            Storage(folder),
            device,
            decoder=False,
            precision="bf16" if contender.precision == "bf16" else "fp32",
            compile=contender.compile,
        )
        return lambda x_BCHW: tokenizer.encode(x_BCHW).flatten(), tokenizer
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    arguments, state = to_transformers(*read_image_tokenizer(Storage(folder)))
    peer: Any = ChameleonVQVAE(ChameleonVQVAEConfig(**arguments)).eval()
    peer.load_state_dict(state)
    dtype = torch.bfloat16 if contender.precision == "bf16" else torch.float32
    layout = torch.channels_last if contender.channels_last else torch.contiguous_format
    peer = peer.to(device, dtype).to(memory_format=layout)

    def codes(x_BCHW: Tensor) -> Tensor:
        found: Tensor = peer.encode(x_BCHW).image_tokens
        return found

    way = torch.compile(codes, dynamic=False) if contender.compile else codes

    def encode(x_BCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = way(normalise(x_BCHW).to(dtype).contiguous(memory_format=layout))
        return found

    return encode, None


# -- processes


class Process:
    """A contender in a process of its own, on CPUs, with the same number of threads as every other."""

    def __init__(
        self, contender: Contender, folder: Path, pictures: np.ndarray[Any, Any], threads: int, small: bool = False
    ) -> None:
        spawn = get_context("spawn")
        self._here, there = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(there, contender, folder, pictures, threads, small), daemon=True
        )
        self._process.start()

    def ask(self, what: str, number: int = 0) -> Any:
        """``encode`` picture ``number``: seconds and codes; ``rate``: GFLOP/s; ``parts``: :func:`parts`."""
        self._here.send((what, number))
        answer = self._here.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        self._here.send(("end", 0))
        self._process.join()


def _serve(
    pipe: Connection,
    contender: Contender,
    folder: Path,
    pictures: np.ndarray[Any, Any],
    threads: int,
    small: bool,
) -> None:
    import torch

    from model.image_tokenizer.fast import keep_freed_memory

    torch.set_num_threads(threads)
    if contender.kept:
        keep_freed_memory()
    encode, tokenizer = encoder_of(contender, folder, "cpu")
    clock = time.process_time if threads == 1 else time.perf_counter
    while True:
        what, number = pipe.recv()
        if what == "end":
            return
        x_BCHW = torch.from_numpy(pictures[number % len(pictures)][None]).permute(0, 3, 1, 2)
        try:
            if what == "encode":
                begun = clock()
                codes = encode(x_BCHW)
                answer: Any = (clock() - begun, codes.flatten().tolist())
            elif what == "rate":
                answer = product_rate("cpu", contender.precision, clock, 256 if small else 2048)
            else:
                assert tokenizer is not None
                answer = parts(tokenizer, x_BCHW, clock)
        except Exception as e:  # for the parent to raise
            answer = RuntimeError(f"{contender}: {type(e).__name__}: {e}")
        pipe.send(answer)


# -- rates and parts


def product_rate(device: str, precision: str, clock: Callable[[], float], side: int) -> float:
    """GFLOP/s of a square matrix product, the best of several: what arithmetic alone would allow."""
    import torch

    from model.image_tokenizer.fast import exact_float32

    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    if precision == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    best = float("inf")
    with exact_float32():
        for _ in range(5):
            _wait(device)
            begun = clock()
            a @ b
            _wait(device)
            best = min(best, clock() - begun)
    return 2 * side**3 / max(best, 1e-9) / 1e9


def parts(tokenizer: ImageTokenizer, x_BCHW: Tensor, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Where the time of one call goes: a row a part, with seconds, seconds in convolutions, and GFLOP of these.

    ``norms and input`` is what is outside every listed module: the uint8 picture to float, and the last norm.
    """
    from torch import nn

    model, device = tokenizer.model, str(tokenizer.device)
    rows: dict[str, dict[str, Any]] = {}
    hooks: list[Any] = []
    begun: dict[nn.Module, float] = {}

    def row(name: str) -> dict[str, Any]:
        return rows.setdefault(name, {"part": name, "seconds": 0.0, "convolutions": 0.0, "gflop": 0.0})

    def start(module: nn.Module, _: object) -> None:
        _wait(device)
        begun[module] = clock()

    def end(key: str, name: str) -> Callable[..., None]:
        def note(module: Any, _: object, out: Tensor) -> None:
            _wait(device)
            row(name)[key] += clock() - begun[module]
            if key == "convolutions":
                row(name)["gflop"] += 2e-9 * out.numel() * module.weight[0].numel()

        return note

    for name, module in model.named_modules():
        part = _part_of(name)
        if part is None:
            continue
        if name in _TOPS or (type(module).__name__ in _BLOCKS and ".mid." not in name):
            hooks += [module.register_forward_pre_hook(start), module.register_forward_hook(end("seconds", part))]
        if isinstance(module, nn.Conv2d):
            hooks += [module.register_forward_pre_hook(start), module.register_forward_hook(end("convolutions", part))]
    searched = model.quantize.codes

    def search(z_BDHW: Tensor) -> Tensor:
        _wait(device)
        at = clock()
        found = searched(z_BDHW)
        _wait(device)
        row("search")["seconds"] += clock() - at
        row("search")["gflop"] += 2e-9 * found.numel() * model.config.codes * model.config.embed_dim
        return found

    tokenizer.encode(x_BCHW)
    rows.clear()
    _wait(device)
    at = clock()
    with patch.object(model.quantize, "codes", search):
        tokenizer.encode(x_BCHW)
    _wait(device)
    total = clock() - at
    for hook in hooks:
        hook.remove()
    rest = total - sum(r["seconds"] for r in rows.values())
    return [*rows.values(), {"part": "norms and input", "seconds": rest, "convolutions": 0.0, "gflop": 0.0}]


_BLOCKS = ("ResidualBlock", "Downsample")
_TOPS = ("encoder.conv_in", "encoder.mid", "encoder.conv_out", "quant_conv")


def _part_of(name: str) -> str | None:
    if name.startswith("encoder.down."):
        return f"level {name.split('.')[2]}"
    return next((top.removeprefix("encoder.") for top in _TOPS if name == top or name.startswith(top + ".")), None)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """:func:`parts` to read."""
    total = sum(r["seconds"] for r in rows)
    lines = [f"{'part':16}{'ms':>9}{'share':>8}{'of it convolutions':>20}{'GFLOP':>9}{'GFLOP/s':>9}"]
    for r in rows:
        rate = f"{r['gflop'] / r['seconds']:9.0f}" if r["gflop"] and r["seconds"] else ""
        inside = f"{r['convolutions'] / r['seconds']:20.0%}" if r["seconds"] else ""
        lines.append(
            f"{r['part']:16}{r['seconds'] * 1e3:9.1f}{r['seconds'] / total:8.1%}{inside:>20}{r['gflop']:9.2f}{rate}"
        )
    return "\n".join(lines)


def _wait(device: str | torch.device) -> None:
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.synchronize()
