"""What the pipeline costs beside the work: pictures/s of the real step ``encode`` against a bare loop.

    python -m benchmarks.pipeline_overhead [--json] [--rounds 5] [--pictures 6144] [--large-pictures 12] [--device cuda]

Both sides use the same pictures in the same batches, the same transform, the same encoder and the same number of
processes with one thread of torch each. The bare loop has its picture files in memory and keeps the codes in a list:
no Ray, no tables, no hashes, no commit. The other side is ``tasks.encode.run`` on a real Ray with as many actors: it
reads tars and the tables of ``scan`` and ``select``, checks, encodes, writes Parquet and commits part by part.

Two encoders: ``small``, where the pictures/s are many and overhead shows, and ``chameleon``, 512x512 to 1,024 of 8,192
codes, with random weights (speed does not depend on them). The two sides alternate; a ratio is the median of the
rounds'. It is taken in the steady state that a long run sees: of every actor from its first commit to its last, by the
manifests' times, against every bare process from its first picture to its last. ``_with_start`` is the whole
step from its call to its manifest, start of actors and loading of torch included, against the same bare loop; it says
how short this run is, not how fast.
All processes have the niceness of Ray's workers. Even so a busy machine makes single rounds worth nothing.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.bare_loop import BareLoop
from benchmarks.common import SHARED_DATA, emit, machine_line, median
from benchmarks.image_transforms import read_pictures
from tasks.context import StepContext
from tasks.encode import run as encode
from tasks.pool import PartOutput
from tasks.sources.base import WorkItem

SMALL: dict[str, Any] = {
    **{"resolution": 40, "codes": 1024, "channels": 16, "multipliers": [1, 1, 2], "residual_blocks": 1},
    **{"z_channels": 32, "embed_dim": 16, "norm_groups": 16},
}
CHAMELEON: dict[str, Any] = {}
PHOTOS = SHARED_DATA / "pairs" / "images"


# -- the pictures and the work folder


def write_tars(folder: Path, count: int, per_tar: int, side: int | None) -> None:
    """``count`` pictures with captions, ``per_tar`` a tar: the photos again and again, each time as another file.

    ``side``: first shrunk to this short side, as downloaders do; None: as they are.
    """
    photos = read_pictures(PHOTOS if PHOTOS.is_dir() else None, min(count, 256))
    files = [_shrunk(data, side) if side else data for data in photos if data.startswith(b"\xff\xd8")]
    for start in range(0, count, per_tar):
        with tarfile.open(folder / f"{start // per_tar:05d}.tar", "w") as tar:
            for number in range(start, min(start + per_tar, count)):
                # A JPEG comment makes it another file with the same pixels: equal files are encoded only once.
                comment = f"{number:010d}".encode()
                data = files[number % len(files)]
                data = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
                for name, content in ((f"{number:08d}.jpg", data), (f"{number:08d}.txt", b"a photo")):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def _shrunk(data: bytes, side: int) -> bytes:
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = side / min(image.size)
    sink = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def make_context(folder: Path, tokenizer: dict[str, Any], batch: int, args: argparse.Namespace) -> StepContext:
    """A work folder in which everything before ``encode`` is done, over the tars in ``folder``; encode's context."""
    import torch

    from model.image_tokenizer.load import save_image_tokenizer
    from model.image_tokenizer.vqgan import VQModel
    from tasks.recipe import parse_recipe
    from tasks.scan import run as scan
    from tasks.scan import select

    codes = tokenizer.get("codes", 8192)
    raw = {
        "name": "overhead",
        "folder": str(folder),
        "vocabulary": {"image_codes": codes, "text_start": codes + 12, "size": codes + 1012},
        "sources": [
            {"name": "photos", "type": "tasks.sources.webdataset:WebdatasetFiles", "kind": "pairs", "path": str(folder)}
        ],
        "image_tokenizer": tokenizer,
        "pictures": {"transform": args.transform},
        "encode": {"batch": batch},
        "mix": {"tokens": 1000, "stages": [{"name": "one", "share": 1, "weights": {"photos": 1}}]},
        "finetune_mix": {"sources": []},
        "resources": {
            "data_workers": args.workers,
            "data_gpus": 1 / args.workers if args.device == "cuda" else 0,
            "decode_threads": args.decode_threads,
        },
    }
    work = str(folder / "work")
    recipe = parse_recipe(raw)
    scan.run(StepContext(recipe, work, "scan"))
    select.run(StepContext(recipe, work, "select"))
    context = StepContext(recipe, work, "image-tokenizer")
    torch.manual_seed(0)
    model = VQModel(recipe.image_tokenizer)
    context.finish(files=save_image_tokenizer(context.store(), recipe.image_tokenizer, model.state_dict()))
    return StepContext(recipe, work, "encode")


# -- end to end


class Noting(encode.SampleEncoder):
    """The step's own worker, which also leaves a note of the process that made each part."""

    def process(self, item: WorkItem) -> PartOutput:
        """As the class it is."""
        out = super().process(item)
        (Path(self._context.root) / f"{item.part}.by-{os.getpid()}").touch()
        return out


def encode_end_to_end(context: StepContext, count: int, items: int) -> tuple[float, float]:
    """Runs the step from nothing: its seconds in all, and the pictures/s of its actors from first to last commit."""
    fresh = StepContext(context.recipe, context.root, "encode")
    shutil.rmtree(fresh.store().path(), ignore_errors=True)
    for note in Path(context.root).glob("*.by-*"):
        note.unlink()
    began = time.monotonic()
    with patch.object(encode, "SampleEncoder", Noting):
        encode.run(fresh)
    seconds = time.monotonic() - began
    commits: dict[str, list[int]] = {}
    for note in Path(context.root).glob("*.by-*"):
        part, _, process = note.name.partition(".by-")
        commits.setdefault(process, []).append(fresh.store().path(f"parts/{part}.json").stat().st_mtime_ns)
    spans = [(len(times) - 1, (max(times) - min(times)) / 1e9) for times in commits.values() if len(times) > 1]
    if len(spans) < context.recipe.resources.data_workers:
        raise SystemExit("an actor committed no two parts; ask for more --items, or for a quieter machine")
    return seconds, sum(parts * count / items / span for parts, span in spans)


# -- both


def compare(
    name: str,
    tokenizer: dict[str, Any],
    count: int,
    items: int,
    batch: int,
    side: int | None,
    rounds: int,
    args: argparse.Namespace,
) -> dict[str, float]:
    """The figures of one encoder: pictures/s of both sides, their ratio, and the overhead a picture."""
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        write_tars(folder, count, count // items, side)
        context = make_context(folder, tokenizer, batch, args)
        bare = BareLoop(context, folder, args.workers, args.device, args.decode_threads, _niceness())
        ratios, whole, rates, bare_rates = [], [], [], []
        for number in range(rounds):
            total, rate = encode_end_to_end(context, count, items)
            rates.append(rate)
            bare_rates.append(bare.rate())
            ratios.append(rates[-1] / bare_rates[-1])
            whole.append(count / total / bare_rates[-1])
            print(
                f"{name}, round {number + 1}: {rates[-1]:.4g} pictures/s, bare loop {bare_rates[-1]:.4g}: "
                f"{ratios[-1]:.3f}; with the start of this short run {whole[-1]:.3f}",
                flush=True,
            )
        bare.close()
    # Of one process, since they work side by side: what a picture takes longer than in the bare loop.
    overhead = median([args.workers * (1 / a - 1 / b) * 1e6 for a, b in zip(rates, bare_rates, strict=True)])
    return {
        "ratio_to_bare_loop": median(ratios),
        "microseconds_per_picture": overhead,
        "pictures_per_second": median(rates),
        "bare_pictures_per_second": median(bare_rates),
        "ratio_with_start": median(whole),
    }


def _niceness() -> int:
    """That of Ray's workers, which give way to other processes."""
    import ray

    found: int = ray.get(ray.remote(lambda: os.nice(0)).remote())
    return found


@contextmanager
def _ray(workers: int, gpus: int) -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=workers, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    options.add_argument("--rounds", type=int, default=5, help="of each side, in turn; 0: leave the small encoder out")
    options.add_argument("--large-rounds", type=int, default=3, help="0: leave Chameleon's encoder out")
    options.add_argument("--pictures", type=int, default=6144, help="for the small encoder; 0: leave it out")
    options.add_argument("--large-pictures", type=int, default=12, help="for Chameleon's encoder; 0: leave it out")
    options.add_argument("--items", type=int, default=12, help="work items that the pictures of a round are in")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--large-batch", type=int, default=1)
    options.add_argument("--workers", type=int, default=2, help="actors, and processes of the bare loop")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--decode-threads", type=int, default=None, help="of each; default 0, on a GPU 6")
    options.add_argument("--transform", default="reference-1", help="pictures.transform")
    args = options.parse_args(argv)
    if args.decode_threads is None:
        args.decode_threads = 6 if args.device == "cuda" else 0
    os.environ["OMP_NUM_THREADS"] = "1"
    print(machine_line())
    figures: dict[str, float] = {}
    with _ray(args.workers, int(args.device == "cuda")):
        if args.pictures and args.rounds:
            small = compare("small", SMALL, args.pictures, args.items, args.batch, 256, args.rounds, args)
            figures |= small
        if args.large_pictures and args.large_rounds:
            count, rounds = args.large_pictures, args.large_rounds
            items = max(1, min(args.items // 2, count))
            large = compare("chameleon", CHAMELEON, count, items, args.large_batch, None, rounds, args)
            figures |= {f"chameleon_{name}": value for name, value in large.items()}
    emit(figures, args.json)


if __name__ == "__main__":
    main()
