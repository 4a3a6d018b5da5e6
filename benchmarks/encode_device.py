"""``benchmarks.encode`` on an accelerator: pictures a second at several batches, the peer on the same card, its rates.

Every encoder in turn is alone on the device: batches of pictures that are there already, as uint8, to codes that stay
there. What is compiled is compiled for each batch, in the order of importance, until the time is up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import median
from benchmarks.encoders import Contender, encoder_of, parts, product_rate, table
from model.image_tokenizer.config import ImageTokenizerConfig

WINDOW_S = 1.5
"""How long one timing runs, of which the median of several counts."""
WINDOWS = 3


def device_figures(
    args: argparse.Namespace,
    config: ImageTokenizerConfig,
    pictures: np.ndarray[Any, Any],
    folder: Path,
    *,
    device: str,
    gflop: float,
    deadline: float,
    window: float = WINDOW_S,
) -> dict[str, Any]:
    """All figures of the device; ``deadline`` (monotonic) is when nothing new is begun any more."""
    import torch

    figures: dict[str, Any] = {"gflop_per_picture": gflop}
    side = 512 if args.small else 8192
    for precision in ("fp32", "bf16"):
        found = product_rate(device, precision, time.perf_counter, side) / 1e3
        figures[f"product_tflops_{precision}"] = found
        print(f"products in {precision}: {found:.1f} TFLOP/s")
    figures["memory_gb_per_second"] = _memory_rate(device, (1 << 20) if args.small else (1 << 30))
    print(f"memory: {figures['memory_gb_per_second']:.0f} GB/s, reading and writing counted")
    figures |= _parity(pictures, folder, device)
    largest = max(args.batches)
    runs: list[tuple[str, Contender, int]] = []
    for precision in ("bf16", "fp32"):
        for kind, compile, batches in (("_compiled", True, (largest,)), ("", False, args.batches)):
            for who in ("ours", "peer") if not (compile and args.skip_compile) else ():
                contender = Contender(who == "ours", precision, compile, channels_last=True)
                runs += [(f"{who}_{precision}{kind}", contender, batch) for batch in batches]
    if not args.skip_compile:
        smaller = [batch for batch in args.batches if batch != largest]
        runs += [("ours_bf16_compiled", Contender(True, "bf16", True), batch) for batch in reversed(smaller)]
    for name, contender, batch in runs:
        if time.monotonic() > deadline:
            print(f"{name} at {batch}: left out, the time is up")
            figures.setdefault("left_out", []).append(f"{name}_{batch}")
            continue
        speed = _pictures_per_second(contender, folder, pictures, batch, device, window)
        figures[f"{name}_{batch}_per_second"] = speed
        share = speed * gflop / 1e3 / figures[f"product_tflops_{contender.precision}"]
        figures[f"{name}_{batch}_product_share"] = share
        print(f"{name} at {batch}: {speed:.1f} pictures/s, {share:.1%} of the rate of products", flush=True)
    for precision in ("bf16", "fp32"):
        for kind in ("", "_compiled"):
            mine, other = (figures.get(f"{who}_{precision}{kind}_{largest}_per_second") for who in ("ours", "peer"))
            if mine and other:
                figures[f"ratio_to_peer_{precision}{kind}"] = mine / other
    for precision in ("bf16", "fp32"):
        _, tokenizer = encoder_of(Contender(True, precision), folder, device)
        assert tokenizer is not None
        rows = parts(tokenizer, _batch(pictures, min(8, largest), device), time.perf_counter)
        print(f"\n{precision}, not compiled, {min(8, largest)} pictures\n{table(rows)}")
        figures[f"parts_{precision}"] = rows
    if device != "cpu":
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def _pictures_per_second(
    contender: Contender, folder: Path, pictures: np.ndarray[Any, Any], batch: int, device: str, window: float
) -> float:
    import torch

    encode, _ = encoder_of(contender, folder, device)
    x_BCHW = _batch(pictures, batch, device)
    for _ in range(2):
        encode(x_BCHW)
    seconds = _timed(lambda: encode(x_BCHW), device, window)
    torch.compiler.reset()
    if device != "cpu":
        torch.cuda.empty_cache()
    return batch / seconds


def _timed(work: Callable[[], object], device: str, window: float) -> float:
    """Seconds of one call: the median over windows of calls without a pause."""
    _wait(device)
    begun = time.perf_counter()
    work()
    _wait(device)
    calls = max(1, round(window / max(1e-6, time.perf_counter() - begun)))
    taken = []
    for _ in range(WINDOWS):
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        _wait(device)
        taken.append((time.perf_counter() - begun) / calls)
    return median(taken)


def _parity(pictures: np.ndarray[Any, Any], folder: Path, device: str) -> dict[str, float]:
    """Shares of equal codes: ours on the device against ours on the CPU, the peer there, and each bf16 against it."""
    way = {
        "cpu": (Contender(True), "cpu"),
        "device": (Contender(True), device),
        "peer": (Contender(False), device),
        "bf16": (Contender(True, "bf16"), device),
        "peer_bf16": (Contender(False, "bf16", channels_last=True), device),
    }
    codes = {
        name: encoder_of(contender, folder, where)[0](_batch(pictures, 2, where)).cpu()
        for name, (contender, where) in way.items()
    }
    found = {
        "equal_codes_device_and_cpu": float((codes["device"] == codes["cpu"]).float().mean()),
        "equal_codes_device_and_peer": float((codes["device"] == codes["peer"]).float().mean()),
        "equal_codes_bf16": float((codes["bf16"] == codes["device"]).float().mean()),
        "equal_codes_peer_bf16": float((codes["peer_bf16"] == codes["device"]).float().mean()),
    }
    for name, share in found.items():
        print(f"{name}: {share:.2%}")
    return found


def _memory_rate(device: str, size: int) -> float:
    """GB/s of a copy within the device's memory, bytes read and written counted."""
    import torch

    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / _timed(lambda: b.copy_(a), device, 0.2) / 1e9


def _batch(pictures: np.ndarray[Any, Any], count: int, device: str) -> Any:
    """``count`` different pictures on the device, channels last."""
    import torch

    rows = [np.roll(pictures[n % len(pictures)], 3 * (n // len(pictures)), 0) for n in range(count)]
    return torch.from_numpy(np.stack(rows)).to(device).permute(0, 3, 1, 2)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
