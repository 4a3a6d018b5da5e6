"""How much of a GPU training uses: model FLOPs utilisation beside ``transformers``' Chameleon on the same card.

    python -m benchmarks.mfu --device cuda [--json] [--minutes 9]      (one GPU of 80 GiB or more, no network)
    python -m benchmarks.mfu --small                                   (any machine: the same paths at toy size)

Two models: ``1b``, 1.3 billion parameters, and ``7b``, Chameleon-7B's layers, as many as fit beside its embedding and
output matrix. Rows of 4,096 tokens, each one document. A step is forward, loss, backward, clipping and AdamW; weights
and gradients are bf16, AdamW works on float32 copies (``MasterWeights``), alike for both sides, which have the same
weights and must agree in their losses first. It is the model's own speed, without DeepSpeed, several cards or a loader.
Each side is measured eagerly and compiled layer by layer, after warm-up, the median of several steps; the batch is the
largest of ``--rows`` that fits, sought by each side for itself.

MFU is FLOPs a token times tokens a second over the card's nominal dense bf16 rate (``--peak`` where it is not known).
*full* counts 6 per weight in matrix products and attention over all pairs of positions, 12·layers·dim·length (the usual
count also takes the embedding, which is looked up, not multiplied); *causal* counts half of that attention, which is
what is needed. ``7b_layers`` is the time of single layers, by the difference between two depths: what a 7B of 32 layers
comes to without its output matrix; ``7b_projected`` is all 32 layers and the rest, as these times say.
``matmul_tflops`` is what a large product reaches.

``profile_...`` names where a compiled step's time goes, by kind of kernel, and the largest kernels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.common import emit, machine_line
from benchmarks.encoders import product_rate
from benchmarks.mfu_steps import Shape, batch, build, clean, measure
from benchmarks.trainers import mean_nll
from model.training.watch.throughput import flops_per_token, nominal_peak
from model.transformer.config import TransformerConfig

LAYERS_7B = 32
AGREE = 0.03
"""Nats by which the sides' losses may differ in bf16."""


def shapes(small: bool) -> dict[str, Shape]:
    """1b; 7b at two depths, whose difference is that of whole layers."""
    if small:
        of = {"dim": 64, "heads": 2, "dropout": 0.0}
        found = {"1b": {**of, "layers": 2}, "7b_shallow": {**of, "layers": 1}, "7b": {**of, "layers": 3}}
        vocabulary, length = 512, 32
    else:
        seven = {"dim": 4096, "heads": 32, "dropout": 0.0}
        found = {"1b": {"dim": 2048, "layers": 20, "heads": 16, "dropout": 0.0}}
        found |= {"7b_shallow": {**seven, "layers": 4}, "7b": {**seven, "layers": 8}}
        vocabulary, length = 65536, 4096
    return {name: Shape(name, TransformerConfig.model_validate(c), vocabulary, length) for name, c in found.items()}


def utilisation(found: Mapping[str, Any], shape: Shape, peak: float) -> dict[str, float]:
    """Tokens a second and MFU by both counts."""
    tokens = found["rows"] * shape.length
    counts = dict(zip(("full", "causal"), flops_per_token(shape.config, shape.vocabulary, shape.length), strict=True))
    rates = {"tokens_per_second": tokens / found["seconds"]}
    rates |= {f"mfu_{name}": count * tokens / found["seconds"] / peak for name, count in counts.items()}
    bare = counts["full"] * tokens / found["seconds_without_optimizer"] / peak
    return rates | {"mfu_full_without_optimizer": bare}


def projected(deep: float, shallow: float, rows: int, many: Shape, few: Shape, peak: float) -> dict[str, float]:
    """Of seconds at two depths with ``rows`` rows: what layers alone reach, and a whole 7B's 32 of them."""
    more = many.config.layers - few.config.layers
    layer, tokens = (deep - shallow) / more, rows * many.length
    ends = {name: flops_per_token(s.config, s.vocabulary, s.length)[0] for name, s in (("many", many), ("few", few))}
    each = (ends["many"] - ends["few"]) / more
    rest = LAYERS_7B - many.config.layers
    whole_seconds, whole_flops = deep + rest * layer, ends["many"] + rest * each
    return {
        "7b_layers_mfu_full": each * tokens / layer / peak,
        "7b_projected_mfu_full": whole_flops * tokens / whole_seconds / peak,
        "7b_projected_tokens_per_second": tokens / whole_seconds,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=(8, 4, 2, 1))
    parser.add_argument("--minutes", type=float, default=9, help="after which nothing is begun")
    parser.add_argument("--peak", type=float, help="nominal dense bf16 TFLOP/s of a card that is not known")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--skip-compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    print(machine_line("transformers", "triton"))
    models = shapes(args.small)
    if args.device == "cpu" and not args.small:
        print(needs(models.values()))
        emit({"measured": False}, args.json)
        return
    side = 256 if args.small else 8192
    product = product_rate(args.device, "bf16", time.perf_counter, side) * 1e9
    peak = peak_of(args.device, args.peak, product)
    figures: dict[str, Any] = {"measured": True, "toy_size": args.small}
    figures |= {"matmul_tflops": product / 1e12, "peak_tflops": peak / 1e12}
    print(f"a product of {side} reaches {product / 1e12:.3g} TFLOP/s; MFU is over {peak / 1e12:.3g}", flush=True)
    agree(models["7b_shallow"], args.device)
    ways = [("eager", False)] if args.skip_compile else [("compiled", True), ("eager", False)]
    runs = [(name, who, way) for name in ("7b", "1b") for way in ways for who in ("ours", "peer")]
    runs.insert(1, ("7b_shallow", "ours", ways[0]))
    rows_of_7b: list[int] = []
    seconds: dict[str, float] = {}
    for name, who, (how, compile) in runs:
        key = f"{name}_{who}_{how}"
        if time.monotonic() > deadline:
            figures.setdefault("left_out", []).append(key)
            continue
        rows = rows_of_7b if name == "7b_shallow" else args.rows
        try:
            found = measure(models[name], who, compile, rows, args.device, who == "ours" and "shallow" not in name)
        except Exception as e:  # one side's compiler or memory must not cost the others' figures
            print(f"{key}: {type(e).__name__}: {str(e)[:300]}", flush=True)
            figures.setdefault("failed", []).append(key)
            continue
        if key.startswith("7b_ours") and not rows_of_7b:
            rows_of_7b = [found["rows"]]
        seconds[key] = found["seconds"]
        kept = found | utilisation(found, models[name], peak)
        figures |= {f"{key}_{k}": v for k, v in kept.items() if k not in ("profile", "kernels")}
        print(f"{key}: " + ", ".join(f"{k} {v:.4g}" for k, v in kept.items() if isinstance(v, int | float)), flush=True)
        if "profile" in found:
            figures[f"profile_{name}_{how}"] = found["profile"]
            figures[f"kernels_{name}_{how}"] = found["kernels"]
            print("\n".join(f"  {share:6.1%}  {k}" for k, share in (found["profile"] | found["kernels"]).items()))
    how = ways[0][0]
    deep, shallow = seconds.get(f"7b_ours_{how}"), seconds.get(f"7b_shallow_ours_{how}")
    if deep and shallow and deep > shallow:
        figures |= projected(deep, shallow, rows_of_7b[0], models["7b"], models["7b_shallow"], peak)
    emit(figures | ratios(figures), args.json)


def ratios(figures: Mapping[str, Any]) -> dict[str, float]:
    """Our tokens a second over the peer's, model by model."""
    found = {}
    for name in ("7b", "1b"):
        for how in ("compiled", "eager"):
            ours, peer = (figures.get(f"{name}_{who}_{how}_tokens_per_second") for who in ("ours", "peer"))
            if ours and peer:
                found[f"{name}_{how}_ratio_to_peer"] = ours / peer
    return found


def agree(shape: Shape, device: str) -> None:
    """Stops unless both sides compute the same loss."""
    micro = [batch(shape, 1, device)]
    losses = {who: mean_nll(build(shape, device, who), micro) for who in ("ours", "peer")}
    print("losses before training: " + ", ".join(f"{who} {loss:.4f}" for who, loss in losses.items()), flush=True)
    if not abs(losses["ours"] - losses["peer"]) <= AGREE:
        raise SystemExit(f"the sides disagree, so that timing them would say nothing: {losses}")
    clean(device)


def peak_of(device: str, given: float | None, product: float) -> float:
    """Nominal bf16 FLOP/s: given in TFLOP/s, known by name, or on CPUs what a product reached."""
    if given is not None:
        return given * 1e12
    if not device.startswith("cuda"):
        return product
    found = nominal_peak(torch.device(device), torch.bfloat16)
    if found is None:
        name = torch.cuda.get_device_name(device)
        raise SystemExit(f"{name}: its nominal bf16 rate is not known here. Give it in TFLOP/s by --peak.")
    return found


def needs(models: Iterable[Shape]) -> str:
    """What a machine without a GPU is told: memory of weights, gradients, copies and moments, by model."""
    lines = ["NOT measured: this wants a GPU with bf16 (on any machine, --small runs the same paths at toy size)."]
    for shape in models:
        count = shape.config.parameters(shape.vocabulary)
        lines.append(
            f"  {shape.name}: {count / 1e9:.2f} B parameters, {count * 20 / 2**30:.0f} GiB before activations; "
            f"{flops_per_token(shape.config, shape.vocabulary, shape.length)[0] / 1e9:.1f} GFLOP a token"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
