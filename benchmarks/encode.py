"""How fast pictures become codes: our encoder against ``transformers``' ``ChameleonVQVAE`` with the same weights.

    python -m benchmarks.encode [--json] [--rounds 5] [--threads 1] [--tokenizer FOLDER]
    python -m benchmarks.encode --device cuda --json          (on a GPU: no network, some eight minutes)

On CPUs: Chameleon's own size, random weights, a codebook spread among their latents, one picture at a time. Every
contender is a process of its own with the same number of threads; they take turns, and each round begins with the next
of them. ``ratio_to_peer`` is the median of the rounds' ratios in float32: ours as the step ``encode`` runs it against
theirs as it comes. ``ratio_to_peer_plain`` is ours without the kept memory that the step's workers have.
``ratio_to_peer_bf16_compiled`` is ours in bf16 against their own code in bf16, channels last and compiled;
it is measured only where the processor multiplies bf16 (``--force`` measures the emulation).

``bound_share`` is what we reach of the speed that we would have if every operation ran at the rate of a large matrix
product, measured beside each round. The table says which part takes how long.

With ``--tokenizer``, a trained tokenizer's folder, ``bf16_equal_codes`` is the share of codes of real photographs that
are the same in bf16 as in float32, and ``psnr_…`` are what each one's codes give when float32 decodes them.
``--device cuda`` is ``encode_device.py``. ``--small`` runs all of it at toy size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import SHARED_DATA, emit, machine_line, median, speed_ratio
from benchmarks.encoders import Contender, Process, random_tokenizer, table
from benchmarks.image_transforms import MAX_PIXELS, REFERENCE, read_pictures
from model.image_tokenizer.config import ImageTokenizerConfig

OURS = Contender(ours=True, kept=True)
PEER = Contender(ours=False)
FLOAT32: dict[str, Contender] = {
    "ours": OURS,
    "peer": PEER,
    "ours_plain": Contender(ours=True),
    "peer_channels_last": Contender(ours=False, channels_last=True),
}
COMPILED: dict[str, Contender] = {"ours_compiled": Contender(ours=True, kept=True, compile=True)}
BF16: dict[str, Contender] = {
    "ours_bf16": Contender(ours=True, precision="bf16", kept=True),
    "ours_bf16_compiled": Contender(ours=True, precision="bf16", compile=True, kept=True),
    "peer_bf16_compiled": Contender(ours=False, precision="bf16", compile=True, channels_last=True),
}
SMALL: dict[str, Any] = {
    **{"resolution": 32, "codes": 64, "channels": 32, "multipliers": [1, 2], "residual_blocks": 1},
    **{"z_channels": 16, "embed_dim": 16},
}
MEASURED = 48
"""Photographs for the comparison of bf16 with float32."""


def squares(count: int, side: int) -> np.ndarray[Any, Any]:
    """Real photographs as the reference transform makes them, (count, side, side, 3) uint8; else generated ones."""
    folder = SHARED_DATA / "pairs" / "images"
    files = read_pictures(folder if folder.is_dir() else None, count)
    return np.stack([REFERENCE.crop_file(data, side, MAX_PIXELS) for data in files])


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for it; otherwise torch emulates them, far slower than float32."""
    from infra.settings import ResourcesConfig
    from model.training.optimizer import use_bf16

    return use_bf16(ResourcesConfig())


def speeds(
    contenders: dict[str, Contender],
    folder: Path,
    pictures: np.ndarray[Any, Any],
    rounds: int,
    threads: int,
    small: bool,
) -> tuple[dict[str, list[float]], dict[str, list[int]], list[float], list[dict[str, Any]]]:
    """Seconds of every round by contender, codes of the first picture, our GFLOP/s of products by round, our parts."""
    processes = {name: Process(c, folder, pictures, threads, small) for name, c in contenders.items()}
    names = list(processes)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    codes = {name: processes[name].ask("encode", 0)[1] for name in names}  # and each one's warm-up, uncounted
    rates = []
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(processes[name].ask("encode", number)[0])
        rates.append(processes[names[0]].ask("rate"))
        print(
            f"round {number + 1}: " + ", ".join(f"{name} {seconds[name][-1]:.2f} s" for name in names),
            f"; products {rates[-1]:.0f} GFLOP/s",
            flush=True,
        )
    found = processes[names[0]].ask("parts")
    for process in processes.values():
        process.close()
    return seconds, codes, rates, found


def ratio(seconds: dict[str, list[float]], peer: str, ours: str) -> float:
    """The median of the rounds' ratios: how many times as fast as the peer."""
    return speed_ratio(seconds[peer], seconds[ours])


def cpu_figures(
    args: argparse.Namespace, config: ImageTokenizerConfig, pictures: np.ndarray[Any, Any], folder: Path
) -> dict[str, Any]:
    """All that is measured on CPUs with random weights."""
    gflop = encoding_gflop(config)
    contenders = FLOAT32 | ({} if args.skip_compile else COMPILED)
    print(f"\nfloat32, one picture at a time, {args.threads} thread(s), {gflop:.1f} GFLOP a picture", flush=True)
    seconds, codes, rates, rows = speeds(contenders, folder, pictures, args.rounds, args.threads, args.small)
    print("\n" + table(rows), flush=True)
    figures: dict[str, Any] = {f"{name}_seconds": median(taken) for name, taken in seconds.items()}
    figures |= {"ratio_to_peer": ratio(seconds, "peer", "ours")}
    figures |= {f"ratio_to_peer_{n.removeprefix('ours_')}": ratio(seconds, "peer", n) for n in seconds if "ours_" in n}
    figures["ratio_to_peer_channels_last"] = ratio(seconds, "peer_channels_last", "ours")
    figures["equal_codes"] = float(np.mean(np.array(codes["ours"]) == np.array(codes["peer"])))
    figures["codes_used"] = len(set(codes["ours"]))
    figures["product_gflop_per_second"] = median(rates)
    figures["gflop_per_picture"] = gflop
    figures["bound_share"] = median(gflop / r / s for r, s in zip(rates, seconds["ours"], strict=True))
    figures["parts"] = rows
    if not (multiplies_bf16() or args.force):
        print("\nbf16: NOT measured. This processor has no instructions for it, and torch's emulation says nothing.")
        return figures | {"bf16_measured": False}
    lowered = {name: c for name, c in BF16.items() if not (args.skip_compile and c.compile)}
    seconds, codes, rates, rows = speeds(lowered, folder, pictures, args.rounds, args.threads, args.small)
    print("\nbf16\n" + table(rows), flush=True)
    figures |= {f"{name}_seconds": median(taken) for name, taken in seconds.items()}
    figures["bf16_measured"] = True
    figures["bf16_bound_share"] = median(gflop / r / s for r, s in zip(rates, seconds["ours_bf16"], strict=True))
    if "peer_bf16_compiled" in seconds:
        best = min(("ours_bf16", "ours_bf16_compiled"), key=lambda name: median(seconds[name]))
        figures["ratio_to_peer_bf16_compiled"] = ratio(seconds, "peer_bf16_compiled", best)
        figures["fastest_bf16"] = best
    return figures


def encoding_gflop(config: ImageTokenizerConfig) -> float:
    """GFLOP to encode one picture, the search for the nearest codes included, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model.image_tokenizer.vqgan import VQModel

    with torch.device("meta"):
        model, x_BCHW = VQModel(config, decoder=False), torch.zeros(1, 3, config.resolution, config.resolution)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model.latents(x_BCHW)
    search = 2.0 * config.codes_per_image * config.codes * config.embed_dim
    return (float(counted.get_total_flops()) + search) / 1e9


def agreement(folder: str, count: int, device: str) -> dict[str, float]:
    """How bf16 differs from float32 with a trained tokenizer: equal codes, and PSNR of both ones' reconstructions."""
    import torch

    from infra.storage import Storage
    from model.image_tokenizer.load import load_image_tokenizer
    from model.image_tokenizer.losses import psnr

    exact = load_image_tokenizer(Storage(folder), device)
    lowered = load_image_tokenizer(Storage(folder), device, decoder=False, precision="bf16")
    equal, quality, used = [], [], set()
    pictures = squares(count, exact.config.resolution)
    for start in range(0, len(pictures), 8):
        x_BCHW = torch.from_numpy(pictures[start : start + 8]).permute(0, 3, 1, 2).contiguous()
        codes = [tokenizer.encode(x_BCHW) for tokenizer in (exact, lowered)]
        equal.append((codes[0] == codes[1]).float().mean(1).cpu())
        quality.append(torch.stack([psnr(x_BCHW, exact.decode(c).cpu()) for c in codes]))
        used |= set(codes[0].flatten().tolist())
    share, (psnr_exact, psnr_lowered) = torch.cat(equal), torch.cat(quality, 1)
    return {
        "agreement_pictures": len(pictures),
        "agreement_codes_used": len(used) / exact.config.codes,
        "bf16_equal_codes": float(share.mean()),
        "bf16_equal_codes_least": float(share.min()),
        "psnr_fp32_codes": float(psnr_exact.mean()),
        "psnr_bf16_codes": float(psnr_lowered.mean()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--rounds", type=int, default=5, help="on CPUs, of every contender in turn")
    options.add_argument("--threads", type=int, default=1, help="on CPUs; with one, processor seconds are compared")
    options.add_argument("--tokenizer", help="a trained tokenizer's folder, to compare bf16 with float32")
    options.add_argument("--photographs", type=int, default=MEASURED, help="for that comparison")
    options.add_argument("--only-agreement", action="store_true", help="nothing but that comparison")
    options.add_argument("--skip-compile", action="store_true")
    options.add_argument("--force", action="store_true", help="bf16 also where it is emulated")
    options.add_argument("--small", action="store_true", help="toy size, to try the script")
    options.add_argument("--batches", type=partial(_numbers), default=(1, 8, 32, 64), help="on GPUs, e.g. 1,8,64")
    options.add_argument("--seconds", type=float, default=480, help="on GPUs: nothing new is begun after so many")
    args = options.parse_args(argv)
    print(machine_line("transformers"))
    begun = time.monotonic()
    config = ImageTokenizerConfig.model_validate(SMALL if args.small else {})
    figures: dict[str, Any] = {}
    if not args.only_agreement:
        with tempfile.TemporaryDirectory() as name:
            pictures = squares(4, config.resolution)
            random_tokenizer(config, Path(name), pictures[:1])
            measure: Callable[..., dict[str, Any]] = cpu_figures
            if args.device == "cuda":
                from benchmarks.encode_device import device_figures

                deadline = begun + args.seconds
                measure = partial(device_figures, device="cuda", gflop=encoding_gflop(config), deadline=deadline)
            figures |= measure(args, config, pictures, Path(name))
    if args.tokenizer is not None:
        figures |= agreement(args.tokenizer, args.photographs, args.device)
    emit(figures, args.json)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    main()
