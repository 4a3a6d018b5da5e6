"""How fast pictures become squares, and how far ``fast-1`` is from ``reference-1``.

    python -m benchmarks.image_transforms [--json] [--pictures FOLDER] [--rounds 5] [--count 96]

Decoding, resizing and cropping to 512x512 uint8 on one core, in processor seconds, against the plain way with Pillow
(open, convert, LANCZOS on the short side, crop) in the same run, the contenders taking turns. Two corpora: the pictures
of FOLDER, and large originals of 12 and 24 megapixels, made of these by enlarging and by tiling, seeded.
``reference_ratio`` and ``fast_ratio`` are the lesser of the two corpora's. Where img2dataset is installed
(`docs/pictures.md` says how), its resizer runs beside them. It encodes each square as a JPEG, which cannot be turned
off, so it is shown as it is and once more with that encoding's time taken off.

``codes_changed`` is the share of codes that differ between the two transforms. The tokenizer is a stand-in: a small
VQ-GAN encoder with random, seeded weights whose 1,024 codes are k-means centres of its own latents of other pictures
of the corpus. The yardsticks beside it are what JPEG quality 95 and half a pixel's shift change.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from benchmarks.common import SHARED_DATA, emit, machine_line, median, speed_ratio, timed
from tasks.encode.transforms import Pixels, transform

SIDE = 512
MAX_PIXELS = 178_956_970
LARGE = ((4000, 3000), (3000, 4000), (6000, 4000), (4000, 6000))
"""12 and 24 megapixels, lying and standing."""
TILE = 1000
REFERENCE, FAST = transform("reference-1"), transform("fast-1")


def plain(data: bytes) -> Pixels:
    """The plain way with Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    short = min(width, height)
    size = (round(width * SIDE / short), round(height * SIDE / short))
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    image = image.resize(size, Image.Resampling.LANCZOS).crop((left, top, left + SIDE, top + SIDE))
    return np.asarray(image)


def reference(data: bytes) -> Pixels:
    """``reference-1`` from the file."""
    return REFERENCE.crop_file(data, SIDE, MAX_PIXELS)


def fast(data: bytes) -> Pixels:
    """``fast-1`` from the file."""
    return FAST.crop_file(data, SIDE, MAX_PIXELS)


def read_pictures(folder: Path | None, count: int) -> list[bytes]:
    """``count`` pictures spread over the folder's; without one, generated JPEGs of usual sizes."""
    if folder is None:
        return [_generated(number) for number in range(count)]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not files:
        raise SystemExit(f"{folder}: no pictures (.jpg, .jpeg, .png, .webp) in it; name another folder by --pictures")
    step = max(1, len(files) // count)
    return [path.read_bytes() for path in files[::step][:count]]


def _generated(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    width, height = ((640, 480), (480, 640), (500, 375), (640, 427))[seed % 4]
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 6, (height, width, 3))
    return jpeg(Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)), 90)


def jpeg(image: Image.Image, quality: int) -> bytes:
    """The picture as a JPEG file."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def large_originals(pictures: Sequence[bytes]) -> list[bytes]:
    """JPEGs of 12 and 24 megapixels: of each size one enlarged picture and one tiled of many."""
    rng = random.Random(0)

    def any_picture(size: tuple[int, int]) -> Image.Image:
        return ImageOps.fit(Image.open(io.BytesIO(rng.choice(pictures))).convert("RGB"), size, Image.Resampling.BICUBIC)

    made = []
    for width, height in LARGE:
        made.append(jpeg(any_picture((width, height)), 90))
        tiled = Image.new("RGB", (width, height))
        for x in range(0, width, TILE):
            for y in range(0, height, TILE):
                tiled.paste(any_picture((TILE, TILE)), (x, y))
        made.append(jpeg(tiled, 90))
    return made


def img2dataset_resizer() -> ModuleType | None:
    """The module ``img2dataset.resizer`` by itself: the package's own start imports far more than it needs."""
    package = importlib.util.find_spec("img2dataset")
    if package is None or not package.submodule_search_locations:
        print("img2dataset is not installed, so its resizer is not beside the others (docs/pictures.md).")
        return None
    spec = importlib.util.spec_from_file_location(
        "_resizer", Path(package.submodule_search_locations[0]) / "resizer.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for newer versions
    try:
        spec.loader.exec_module(module)
    except ImportError as e:
        print(f"img2dataset is installed, but its resizer cannot be imported ({e}); going on without it.")
        return None
    return module


def contenders() -> dict[str, Callable[[bytes], object]]:
    """The ways to compare, by name; img2dataset's last, where it is installed."""
    ways: dict[str, Callable[[bytes], object]] = {"plain": plain, "reference": reference, "fast": fast}
    module = img2dataset_resizer()
    if module is None:
        return ways
    resizer = module.Resizer(image_size=SIDE, resize_mode="center_crop", resize_only_if_bigger=False)
    ways["img2dataset"] = lambda data: resizer(io.BytesIO(data))
    return ways


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB; 99 for equal pictures."""
    error = float(((a.astype(np.float32) - b) ** 2).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def speeds(name: str, pictures: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Figures of one corpus, their keys beginning with its name."""
    ways = contenders()

    def turn(way: Callable[[bytes], object]) -> None:
        for data in pictures:
            way(data)

    seconds = timed({key: partial(turn, way) for key, way in ways.items()}, rounds, clock=time.process_time)
    figures = {}
    for key, taken in seconds.items():
        figures[f"{name}_{key}_per_second"] = len(pictures) / median(taken)
        if key != "plain":
            figures[f"{name}_{key}_ratio"] = speed_ratio(seconds["plain"], taken)
    if "img2dataset" in ways:
        squares = [cv2.cvtColor(reference(data), cv2.COLOR_RGB2BGR) for data in pictures]
        begun = time.process_time()
        for square in squares:
            cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, 95])
        encoding = time.process_time() - begun
        bare = [max(1e-9, taken - encoding) for taken in seconds["img2dataset"]]
        figures[f"{name}_img2dataset_without_encoding_ratio"] = speed_ratio(seconds["plain"], bare)
    differences = [psnr(fast(data), reference(data)) for data in pictures]
    figures[f"{name}_psnr"] = median(differences)
    figures[f"{name}_psnr_least"] = min(differences)
    return figures


def codes_changed(pictures: Sequence[bytes], tokenizer_folder: str | None) -> dict[str, float]:
    """Shares of codes that differ from those of the reference's squares: ``fast-1``'s, and two yardsticks'."""
    import torch

    tokenizer, pictures = _tokenizer(pictures, tokenizer_folder)
    side = tokenizer.config.resolution

    def codes(squares: Sequence[Pixels]) -> Any:
        chunks = (np.stack(squares[i : i + 4]) for i in range(0, len(squares), 4))
        return torch.cat([tokenizer.encode(torch.from_numpy(chunk).permute(0, 3, 1, 2)) for chunk in chunks])

    squares = [REFERENCE.crop_file(data, side, MAX_PIXELS) for data in pictures]
    expected = codes(squares)
    others = {
        "codes_changed": [FAST.crop_file(data, side, MAX_PIXELS) for data in pictures],
        "codes_changed_by_jpeg_95": [_again(square) for square in squares],
        "codes_changed_by_half_a_pixel": [_shifted(square) for square in squares],
    }
    shares = {name: float((codes(other) != expected).float().mean()) for name, other in others.items()}
    return shares | {"codes_used": float(len(expected.unique()))}


def _tokenizer(pictures: Sequence[bytes], folder: str | None) -> tuple[Any, Sequence[bytes]]:
    """A tokenizer and the pictures to try it on: the folder's, or a stand-in fitted to every second picture."""
    import torch

    from infra.storage import Storage
    from model.image_tokenizer.config import ImageTokenizerConfig
    from model.image_tokenizer.load import ImageTokenizer, load_image_tokenizer
    from model.image_tokenizer.quantize import kmeans
    from model.image_tokenizer.vqgan import VQModel, normalise

    if folder is not None:
        return load_image_tokenizer(Storage(folder)), pictures
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        resolution=SIDE, codes=1024, channels=16, residual_blocks=1, z_channels=16, embed_dim=16, norm_groups=8
    )
    model = VQModel(config)
    tokenizer = ImageTokenizer(model)
    with torch.inference_mode():
        squares = [torch.from_numpy(reference(data).copy()).permute(2, 0, 1)[None] for data in pictures[::2]]
        latents = torch.cat([model.latents(normalise(square)) for square in squares])
        vectors = latents.permute(0, 2, 3, 1).reshape(-1, config.embed_dim)
        model.quantize.embedding.weight.copy_(kmeans(vectors, config.codes, 5, torch.Generator().manual_seed(0)))
    return tokenizer, pictures[1::2]


def _again(square: Pixels) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(jpeg(Image.fromarray(square), 95))))


def _shifted(square: Pixels) -> Pixels:
    matrix = np.array([[1, 0, 0.5], [0, 1, 0]])
    shifted: Pixels = cv2.warpAffine(
        square, matrix, square.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return shifted


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark with a command line's arguments, the process's own by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    parser.add_argument(
        "--pictures", type=Path, help="folder of pictures; default: the shared data's, else generated ones"
    )
    parser.add_argument("--tokenizer", help="folder of a trained image tokenizer, instead of the stand-in")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    parser.add_argument("--count", type=int, default=96, help="pictures of the folder, spread over it")
    parser.add_argument("--large", type=int, default=8, help="large originals, at most 8; 0: none")
    args = parser.parse_args(arguments)
    shared = SHARED_DATA / "pairs" / "images"
    folder = args.pictures or (shared if shared.is_dir() else None)
    print(machine_line("img2dataset", "albumentations"))
    print(f"pictures: {folder.name if folder else 'generated'}; one core, processor seconds, {args.rounds} rounds")
    pictures = read_pictures(folder, args.count)
    figures: dict[str, Any] = {"pictures": len(pictures)}
    corpora = {"pairs": pictures} | ({"large": large_originals(pictures)[: args.large]} if args.large else {})
    for name, corpus in corpora.items():
        figures |= speeds(name, corpus, args.rounds if name == "pairs" else max(3, args.rounds // 2))
    for key in ("reference_ratio", "fast_ratio"):
        figures[key] = min(figures[f"{name}_{key}"] for name in corpora)
    figures["psnr"] = min(figures[f"{name}_psnr"] for name in corpora)
    figures |= codes_changed(pictures[:48], args.tokenizer)
    emit(figures, args.json)


if __name__ == "__main__":
    main()
