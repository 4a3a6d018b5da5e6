"""Measures what ``calumma plan`` reckons with, on this machine, and writes the file of rates.

    python -m benchmarks.rates [--json] [--out recipes/rates.json] [--device cuda] [--pictures FOLDER]

What needs an accelerator is measured where there is one (``--device cuda``); elsewhere the figure of the old file stays
and so does its note on where it comes from. Prices are nobody's measurement: edit them.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import SHARED_DATA, emit, machine, median
from benchmarks.corpus import picture, sentence
from infra.store.samples import SAMPLES
from infra.store.tables import write_table
from model.image_tokenizer.config import ImageTokenizerConfig
from model.vocabulary import Vocabulary
from tasks.encode.transforms import transform
from tasks.plan.rates import DEFAULT, Rate, load_rates
from tasks.scan.config import ScanConfig
from tasks.scan.examine import examine
from tasks.scan.facts import Finding
from tasks.scan.tables import SCAN, SELECT
from tasks.scan.tools import Tools
from tasks.sources.base import RawImage, RawSample, Segment, sample_id
from tasks.sources.config import SourceConfig

ROUNDS = 3
SIDE = 512
MAX_PIXELS = 178_956_970


def main() -> None:
    """Measures, prints, and writes the file if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="writes the rates here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pictures", type=Path, help="default: the real pictures beside the checkout, else made ones")
    arguments = parser.parse_args()
    pictures, name = _pictures(arguments.pictures)
    pairs = [
        RawSample(f"{n}", "f", n, captions=(f"a caption of {n} words",), images=(RawImage(f"{n}.jpg", data),))
        for n, data in enumerate(pictures)
    ]
    texts = [RawSample(f"{n}", "f", n, segments=(Segment(text),)) for n, text in enumerate(_texts())]
    text_bytes = sum(len(s.text or "") for t in texts for s in t.segments)
    stored = _stored(pairs, texts)
    measured = {
        "scan": len(pairs) / _seconds(lambda: _examine(pairs, "pairs")),
        "decode": len(pictures) / _seconds(lambda: _decode(pictures)),
        "scan_text": text_bytes / _seconds(lambda: _examine(texts, "text")),
        "tokenize": _tokens_per_second(texts),
        **stored,
    }
    if arguments.device == "cuda":
        measured["encode"] = _encode_per_second("cuda")
    facts = machine()
    basis = f"benchmarks.rates on {facts['processor']}, {name}, {date.today().isoformat()}"
    if arguments.out:
        old = load_rates(arguments.out if arguments.out.exists() else DEFAULT)
        new = {
            key: Rate(value=float(f"{value:.4g}"), unit=getattr(old, key).unit, measured=True, basis=basis)
            for key, value in measured.items()
        }
        arguments.out.write_text(old.model_copy(update=new).model_dump_json(indent=1) + "\n")
    emit(measured, arguments.json)


def _seconds(work: Callable[[], object]) -> float:
    """The median of a few rounds, after one that does not count."""
    work()
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        work()
        rounds.append(time.perf_counter() - begun)
    return median(rounds)


def _pictures(folder: Path | None, count: int = 150) -> tuple[list[bytes], str]:
    place = folder or SHARED_DATA / "pairs"
    found = sorted(p for p in place.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")) if place.is_dir() else []
    if found:
        step = max(1, len(found) // count)
        return [p.read_bytes() for p in found[::step][:count]], f"{len(found[::step][:count])} photographs"
    rng = random.Random(0)
    return [picture(rng, (640, 480)) for _ in range(count)], f"{count} made pictures of 640x480"


def _texts(count: int = 400) -> list[str]:
    files = sorted((SHARED_DATA / "text").rglob("*.txt")) if SHARED_DATA.is_dir() else []
    whole = "".join(p.read_text(encoding="utf-8", errors="ignore")[:400_000] for p in files[:10])
    if len(whole) < 100_000:
        rng = random.Random(0)
        whole = " ".join(sentence(rng) for _ in range(20_000))
    size = min(4000, len(whole) // count)
    return [whole[n * size : (n + 1) * size] for n in range(count)]


def _examine(samples: list[RawSample], kind: Any) -> list[Finding]:
    config = ScanConfig()
    tools = Tools.of(config)
    return [examine(sample, SourceConfig(name="s", type="t", kind=kind), config, tools) for sample in samples]


def _decode(pictures: list[bytes]) -> None:
    how = transform("reference-1")
    for data in pictures:
        how.crop_file(data, SIDE, MAX_PIXELS)


def _tokens_per_second(texts: list[RawSample]) -> float:
    from model.text_tokenizer.config import TextTokenizerConfig
    from model.text_tokenizer.train import train

    plain = [s.text or "" for t in texts for s in t.segments]
    vocabulary = Vocabulary(image_codes=64, text_start=72, size=72 + 8000)
    tokenizer = train(plain, TextTokenizerConfig(), vocabulary)
    count = sum(len(tokenizer.encode(text)) for text in plain)
    return count / _seconds(lambda: [tokenizer.encode(text) for text in plain])


def _stored(pairs: list[RawSample], texts: list[RawSample]) -> dict[str, float]:
    """Bytes a row of the scan's and the selection's tables and of the sample store, and what compression leaves."""
    rng = np.random.default_rng(0)
    findings = _examine(pairs, "pairs")
    ids = [sample_id("s", s.key) for s in pairs]
    scanned = [f.row(i, s.key, s.file, s.row) for f, i, s in zip(findings, ids, pairs, strict=True)]
    selected = [{"sample_id": i, "keep": True, "reason": ""} for i in ids]

    def size(codes: bool, text: bool) -> int:
        rows = []
        for i, s, f in zip(ids, pairs, findings, strict=True):
            drawn = rng.integers(0, 8192, 1024, np.uint16).astype("<u2").tobytes() if codes else b""
            rows.append(_row(i, s, [{**image.row(), "codes": drawn} for image in f.images], text))
        return len(write_table(rows, SAMPLES))

    plain = size(codes=False, text=True)
    words = [
        len(write_table([_row(sample_id("t", t.key), t, [], text) for t in texts], SAMPLES)) for text in (True, False)
    ]
    letters = sum(len((s.text or "").encode()) for t in texts for s in t.segments)
    return {
        "scan_row": (len(write_table(scanned, SCAN)) + len(write_table(selected, SELECT))) / len(pairs),
        "sample_row": plain / len(pairs),
        "codes_ratio": (size(codes=True, text=True) - plain) / (2048 * sum(len(f.images) for f in findings)),
        "text_ratio": (words[0] - words[1]) / letters,
    }


def _row(i: bytes, s: RawSample, images: list[dict[str, Any]], text: bool) -> dict[str, Any]:
    """A row of the sample store."""
    return {
        **{"sample_id": i, "key": s.key, "file": s.file, "row": s.row, "kind": "pairs", "category": "", "licence": ""},
        **{"held_out": False, "captions": list(s.captions), "images": images, "dropped_images": 0, "language": ""},
        **{"segments": [{"role": g.role, "text": g.text if text else "", "image": g.image} for g in s.segments]},
        **{"scores": [], "tokens": b""},
    }


def _encode_per_second(device: str, batch: int = 64, batches: int = 8) -> float:
    """512x512 pictures a second by Chameleon's encoder with random weights, as ``encode`` runs it."""
    import torch

    from model.image_tokenizer.load import ImageTokenizer
    from model.image_tokenizer.vqgan import VQModel

    tokenizer = ImageTokenizer(VQModel(ImageTokenizerConfig()).eval().to(device))
    images_BCHW = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, device=device)

    def work() -> None:
        for _ in range(batches):
            tokenizer.encode(images_BCHW)
        torch.cuda.synchronize()

    return batch * batches / _seconds(work)


if __name__ == "__main__":
    main()
