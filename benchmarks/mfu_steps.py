"""What ``benchmarks.mfu`` measures with: one side's optimizer step in bf16, its seconds, and where they go."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import median
from benchmarks.trainers import OPTIMIZER, Micro, Ours, Peer
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer

KINDS = {
    "attention": ("flash", "attention", "attn", "fmha"),
    "optimizer": ("adam", "multi_tensor"),
    "fused by the compiler": ("triton", "cpp_fused"),
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "::mm", "addmm", "bmm"),
    "copies": ("memcpy", "memset", "copy", "cat"),
    "sums and norms": ("norm", "reduce", "softmax"),
}
"""Kinds of kernels by words in their names, the first that fits; the rest is elementwise."""
ELEMENTWISE = "elementwise"
STEPS, WARM_UP = 6, 3


@dataclass(frozen=True)
class Shape:
    """A model to be measured."""

    name: str
    config: TransformerConfig
    vocabulary: int
    length: int


class MasterWeights:
    """AdamW on float32 copies of bf16 weights: what DeepSpeed's bf16 optimizer does, on one card."""

    def __init__(self, module: nn.Module) -> None:
        self.weights: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.masters = [p.detach().float() for p in self.weights]
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        self.adamw = torch.optim.AdamW(
            self.masters,
            lr=OPTIMIZER.learning_rate,
            betas=OPTIMIZER.betas,
            eps=OPTIMIZER.eps,
            weight_decay=OPTIMIZER.weight_decay,
            fused=True,
        )

    @torch.no_grad()
    def step(self) -> None:
        """Clips, moves the copies, and rounds them into the weights."""
        found = zip(self.masters, self.weights, strict=True)
        used = [(m.grad, w.grad) for m, w in found if m.grad is not None and w.grad is not None]
        nn.utils.clip_grad_norm_(self.weights, OPTIMIZER.clip)
        torch._foreach_copy_([m for m, _ in used], [g for _, g in used])
        self.adamw.step()
        torch._foreach_copy_(self.weights, self.masters)


def build(shape: Shape, device: str, who: str) -> Ours | Peer:
    """One side in bf16, with the same weights for both."""
    with torch.device("meta"):
        model = Transformer(shape.config, shape.vocabulary)
    model = model.to(torch.bfloat16).to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                p.normal_(0, 0.02 if name.startswith("embedding") else p.shape[1] ** -0.5)
    return Ours(model) if who == "ours" else Peer(model)


def compiled(side: Ours | Peer) -> None:
    """Layer by layer, which is how a recipe's ``resources.compile`` does it; the peer's loss as well."""
    if isinstance(side, Ours):
        side.module.run_with(compile=True)
        return
    for layer in side.module.model.layers:
        layer.compile()
    side.loss = torch.compile(side.loss)


def batch(shape: Shape, rows: int, device: str) -> Micro:
    """Random tokens, every row one document."""
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(4, shape.vocabulary, (rows, shape.length + 1), generator=generator).to(device)
    return {"tokens": tokens_BT[:, :-1].contiguous(), "labels": tokens_BT[:, 1:].contiguous()}


def stepper(side: Ours | Peer, micro: Micro, optimizer: MasterWeights | None) -> Callable[[], None]:
    """Forward, backward and, where there is one, the optimizer."""

    def work() -> None:
        side.module.zero_grad(set_to_none=True)
        (side.total(micro) / micro["labels"].numel()).backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()

    return work


def seconds_of(work: Callable[[], None], device: str) -> float:
    """The median of steps, each waited for."""
    for _ in range(WARM_UP):
        work()
    taken = []
    for _ in range(STEPS):
        wait(device)
        begun = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - begun)
    return median(taken)


def measure(shape: Shape, who: str, compile: bool, rows: Sequence[int], device: str, profiled: bool) -> dict[str, Any]:
    """Seconds a step at the largest batch that fits, without the optimizer too, and where the time goes."""
    for number in rows:
        try:
            side = build(shape, device, who)
            if compile:
                compiled(side)
            micro, optimizer = batch(shape, number, device), MasterWeights(side.module)
            work = stepper(side, micro, optimizer)
            found: dict[str, Any] = {"rows": number, "seconds": seconds_of(work, device)}
            found["seconds_without_optimizer"] = seconds_of(stepper(side, micro, None), device)
            if device.startswith("cuda"):
                found["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            if profiled:
                found["profile"], found["kernels"] = profile(work, device)
            return found
        except torch.OutOfMemoryError:
            print(f"{shape.name} {who}: {number} rows do not fit", flush=True)
        finally:
            side = micro = optimizer = work = None  # type: ignore[assignment]
            clean(device)
    raise torch.OutOfMemoryError(f"not even {rows[-1]} rows fit")


def profile(work: Callable[[], None], device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of a step's kernel time by kind, and the largest kernels' shares."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorder

    gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]
    with recorder(activities=activities) as recorded:
        work()
        wait(device)
    times: dict[str, float] = {}
    for event in recorded.key_averages():
        if gpu and (event.device_type != DeviceType.CUDA or getattr(event, "is_user_annotation", False)):
            continue
        times[event.key] = float(event.self_device_time_total if gpu else event.self_cpu_time_total)
    total = sum(times.values()) or 1.0
    kinds: dict[str, float] = {}
    for name, taken in times.items():
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + taken / total
    largest = sorted(times, key=times.__getitem__, reverse=True)[:12]
    return dict(sorted(kinds.items(), key=lambda k: -k[1])), {name[:90]: times[name] / total for name in largest}


def kind_of(kernel: str) -> str:
    """What a kernel is for, by its name."""
    name = kernel.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), ELEMENTWISE)


def clean(device: str) -> None:
    """Forgets what was compiled and gives memory back."""
    torch.compiler.reset()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait(device: str) -> None:
    """Until the device has done all that it was asked."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
