"""Which of the paper's means keep training stable: a small mixed-modal model over learning rates and seeds.

    python -m benchmarks.stability [--json] [--minutes 28] [--out FOLDER] [--processes 2]
    python -m benchmarks.stability --device cuda --scale large --processes 4 --minutes 9       (on a GPU)

The method of Wortsman et al. (2023, "Small-scale proxies for large-scale Transformer training instabilities"): what
goes wrong late in a large training goes wrong soon in a small one whose learning rate is high. Every combination of
QK-norm, z-loss and reordered norm is trained at every rate with every seed, on real codes and texts (see
``stability_data.py``). Each run's course is kept in ``--out``; what is there is not run again, and after ``--minutes``
no other is begun. ``--prepare`` only makes the data, which a machine without them needs in ``--out``.

A run *diverged* if its loss stopped being a number, or its training ends more than half a nat above the lowest it had
reached, by means over an eighth of the course. *Sensitivity* (Wortsman et al., eq. 1) is the mean over rates and seeds
of min(loss, loss at the start) minus the best loss of all: 0 for a variant that trains equally well at every rate.

``stability.json`` has a line a run, ``stability.png`` the picture, and the figures are by variant.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import emit, machine, machine_line, median
from benchmarks.stability_data import SCALES, frequency_loss, load_rows, rows_of, save_rows
from benchmarks.stability_plot import picture
from benchmarks.stability_run import Job, Variant, run

VARIANTS = tuple(Variant(*means) for means in product((False, True), repeat=3))
RATES = (1e-2, 3e-2, 1e-1, 3e-1, 1.0)
SEEDS = (0, 1)
ROSE = 0.5
"""Nats above the lowest loss from which a run counts as diverged."""
Run = Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not there yet, then tells of all that is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(SCALES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--variants", nargs="+", choices=[v.name for v in VARIANTS], help="by default all eight")
    parser.add_argument("--minutes", type=float, default=28, help="after which no run is begun")
    parser.add_argument("--processes", type=int, default=2, help="side by side, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("stability"))
    parser.add_argument("--prepare", action="store_true", help="make the data and stop")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    print(machine_line())
    args.out.mkdir(parents=True, exist_ok=True)
    data = args.out / f"{args.scale}-rows.npz"
    if not data.is_file():
        save_rows(data, rows_of(SCALES[args.scale]))
    if args.prepare:
        return
    wanted = [v for v in VARIANTS if not args.variants or v.name in args.variants]
    # Seeds change slowest and rates fall, so that an early end leaves a whole study with fewer seeds.
    jobs = [
        Job(args.scale, v, rate, seed)
        for seed in args.seeds
        for rate in sorted(args.rates, reverse=True)
        for v in wanted
    ]
    began = time.monotonic()
    left_out = work(jobs, args.out, data, args.device, args.processes, began + 60 * args.minutes)
    runs = [json.loads((args.out / job.file).read_text()) for job in jobs if (args.out / job.file).is_file()]
    if not runs:
        raise SystemExit(f"no run of {len(jobs)} was finished within {args.minutes:g} minutes; give --minutes more.")
    worst = frequency_loss(SCALES[args.scale], load_rows(data))
    names = [v.name for v in wanted]
    compared = comparable(runs, names)
    found = {name: of_variant([r for r in compared if r["variant"] == name], compared, worst) for name in names}
    print(table(found))
    study = {"scale": args.scale, "frequency_loss": worst, "left_out": left_out, "machine": machine(), "runs": runs}
    (args.out / "stability.json").write_text(json.dumps(study) + "\n")
    (args.out / "stability.png").write_bytes(picture(compared, worst))
    print(f"\n{len(runs)} runs, of which {len(compared)} are compared, and their picture are in {args.out}")
    counts = {"runs": len(runs), "compared": len(compared), "left_out": left_out}
    emit(figures_of(found) | counts | {"minutes": (time.monotonic() - began) / 60}, args.json)


def work(jobs: Sequence[Job], out: Path, data: Path, device: str, processes: int, deadline: float) -> int:
    """Does what is not done, so many at a time; how many were not begun. ``deadline`` is monotonic."""
    todo = iter([job for job in jobs if not (out / job.file).is_file()])
    done, total = sum((out / job.file).is_file() for job in jobs), len(jobs)
    if processes <= 1:
        for job in todo:
            if time.monotonic() > deadline:
                return total - done
            line = run_and_keep(job, out, data, device)
            done += 1
            print(f"{done}/{total} {line}", flush=True)
        return total - done
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running: set[Future[str]] = set()
        while True:
            while len(running) < processes and time.monotonic() <= deadline and (following := next(todo, None)):
                running.add(pool.submit(run_and_keep, following, out, data, device))
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done += 1
                print(f"{done}/{total} {future.result()}", flush=True)
    return total - done


def run_and_keep(job: Job, out: Path, data: Path, device: str) -> str:
    """One training, its course on disk when this returns; a line to read."""
    torch.set_num_threads(1)
    found = run(job, load_rows(data), device)
    aside = out / f"{job.file}.aside"  # a kill must not leave half a file that counts as done
    aside.write_text(json.dumps(found) + "\n")
    aside.replace(out / job.file)
    last = found["course"][-1]
    return (
        f"{job.variant.name}, rate {job.rate:g}, seed {job.seed}: held-out {found['held_out']['loss']:.3f}, "
        f"attention logit {last['max_attention_logit']:.3g}, {found['seconds']:.0f} s"
    )


def diverged(run: Run) -> bool:
    """See the module's text. Means, as single batches are noisy."""
    losses: list[float] = [line["loss"] for line in run["course"]]
    end: float = run["held_out"]["loss"]
    if not (math.isfinite(end) and all(map(math.isfinite, losses))):
        return True
    some = max(1, len(losses) // 8)
    means = [sum(losses[at : at + some]) / some for at in range(len(losses) - some + 1)]
    return means[-1] > min(means) + ROSE


def comparable(runs: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """Those whose rate and seed all variants have: an early end must favour none. All, where there are no such."""
    cells = [{(r["rate"], r["seed"]) for r in runs if r["variant"] == name} for name in names]
    common = set.intersection(*cells)
    return [r for r in runs if (r["rate"], r["seed"]) in common] or list(runs)


def of_variant(runs: Sequence[Run], all_runs: Sequence[Run], worst: float) -> dict[str, Any]:
    """What became of a variant, over its rates and seeds."""
    best = min(_finite(r["held_out"]["loss"], worst) for r in all_runs)
    starts = [r["course"][0]["loss"] for r in runs]
    ends = [min(_finite(r["held_out"]["loss"], math.inf), start) for r, start in zip(runs, starts, strict=True)]
    top = max((r["rate"] for r in runs), default=math.nan)
    at_top = [r for r in runs if r["rate"] == top]
    by_rate = {rate: [r for r in runs if r["rate"] == rate] for rate in sorted({r["rate"] for r in runs})}
    return {
        "runs": len(runs),
        "diverged": sum(diverged(r) for r in runs),
        "diverged_rates": [rate for rate, some in by_rate.items() if any(diverged(r) for r in some)],
        "sensitivity": sum(ends) / len(ends) - best if ends else math.nan,
        "best_loss": min(ends, default=math.nan),
        "top_rate": top,
        "loss_at_top_rate": _median(r["held_out"]["loss"] for r in at_top),
        "max_attention_logit": _median(peak(r, "max_attention_logit") for r in at_top),
        "output_norm": _median(r["course"][-1]["output_norm"] for r in at_top),
        "log_z": _median(math.sqrt(r["course"][-1]["z2"]) for r in at_top),
    }


def peak(run: Run, key: str) -> float:
    """The largest value of a run's course; what is not a number counts as infinite."""
    return max(_finite(line[key], math.inf) for line in run["course"])


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """To read: a line a variant; figures at the highest rate are medians over seeds."""
    head = f"{'':34} {'diverged':>9} {'sensitivity':>12} {'best loss':>10}   at the highest rate:"
    head += " loss, attention logit, output norm, |log Z|"
    lines = [
        f"{name:34} {f['diverged']:>4} of {f['runs']:<2} {f['sensitivity']:>11.3f} {f['best_loss']:>10.3f}   "
        f"{f['loss_at_top_rate']:.3f}, {f['max_attention_logit']:,.0f}, {f['output_norm']:,.0f}, {f['log_z']:.1f}"
        for name, f in found.items()
    ]
    return "\n".join(["", head, *lines])


def figures_of(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One figure a variant and quantity, as ``quantity[variant]``."""
    keys = ("diverged", "sensitivity", "best_loss", "loss_at_top_rate", "max_attention_logit", "output_norm", "log_z")
    return {f"{key}[{name}]": values[key] for name, values in found.items() for key in keys}


def _finite(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _median(values: Iterator[float]) -> float:
    kept = [_finite(value, math.inf) for value in values]
    return median(kept) if kept else math.nan


if __name__ == "__main__":
    main()
