"""What every option of ``scan`` costs a picture or a text, how well faces are found, what ``select`` holds in memory.

    python -m benchmarks.scan [--json] [--pictures N] [--rows N]

The options are timed beside plain scanning (decoding, sha256, perceptual hash, size) in the same rounds, on pictures
and texts of the shared data: one thread, its processor time. Faces are compared with boxes that another detector
(OpenCV's res10 SSD) found in the same pictures, which are no ground truth. ``--rows`` synthetic samples, a fifth of
them duplicates, go through select's search in a process of its own, as does a fifth as many.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import SHARED_DATA, emit, machine_line, median, peak_mib, timed
from tasks.scan.config import ScanConfig, SelectConfig
from tasks.scan.duplicates import Candidates, duplicates
from tasks.scan.examine import examine
from tasks.scan.faces import MIN_FACE, SIDE, Face, Faces
from tasks.scan.facts import Finding
from tasks.scan.scorers import ScoreQueue, Scorers
from tasks.scan.tools import Tools
from tasks.sources.base import RawImage, RawSample, Segment
from tasks.sources.config import Kind, SourceConfig

PART = 8192
"""Samples a part of the synthetic ones."""
FILTERS: dict[str, Any] = {"min_side": 8, "max_aspect": 9, "min_caption_chars": 1, "licences": ["*"]}
PICTURE_OPTIONS: dict[str, dict[str, Any]] = {
    "plain filters": FILTERS,
    "language": {"language": True},
    "faces": {"faces": True},
    "nsfw": {"scorers": [{"name": "nsfw", "type": "nsfw"}]},
}
TEXT_OPTIONS: dict[str, dict[str, Any]] = {
    "language": {"language": True},
    "benchmarks": {"benchmarks": [{"name": "hellaswag", "path": "bench/hellaswag_val_2000.jsonl"}]},
    "near_duplicates": {"near_duplicates": True},
}
Box = tuple[float, float, float, float]


def scan(samples: Sequence[RawSample], kind: Kind, options: dict[str, Any]) -> Callable[[], None]:
    """Examines all samples once, with everything loaded before."""
    config = ScanConfig.model_validate(options)
    tools, source = Tools.of(config, SHARED_DATA), SourceConfig(name="s", type="x", kind=kind)
    scorers = Scorers(config.scorers, SHARED_DATA) if config.scorers else None

    def work() -> None:
        findings: list[Finding] = []
        queue = None if scorers is None else ScoreQueue(scorers, tools.pictures)
        for sample in samples:
            if queue is not None:
                queue.add(len(findings), sample)
            findings.append(examine(sample, source, config, tools))
        if queue is not None:
            queue.finish(findings)

    return work


def costs(
    samples: Sequence[RawSample], kind: Kind, options: dict[str, dict[str, Any]], rounds: int
) -> dict[str, float]:
    """Milliseconds a sample: of plain scanning, and of each option on top of it; medians."""
    contenders = {"plain": scan(samples, kind, {})} | {n: scan(samples, kind, o) for n, o in options.items()}
    seconds = timed(contenders, rounds, time.process_time)  # others may keep the machine busy
    each = 1000 / len(samples)
    found = {"plain": median(seconds["plain"]) * each}
    for name in options:
        extra = [on - off for on, off in zip(seconds[name], seconds["plain"], strict=True)]
        found[name] = median(extra) * each
    return found


def real_pairs(count: int) -> list[RawSample]:
    """Every n-th picture of the shared pairs."""
    records = [json.loads(line) for line in (SHARED_DATA / "pairs" / "pairs.jsonl").open(encoding="utf-8")]
    chosen = records[:: max(1, len(records) // count)][:count]
    return [
        RawSample(
            key=record["file"],
            file="pairs.jsonl",
            row=row,
            captions=tuple(record["captions"]),
            images=(RawImage(record["file"], (SHARED_DATA / "pairs" / record["file"]).read_bytes()),),
        )
        for row, record in enumerate(chosen, 1)
    ]


def real_texts(count: int, chars: int = 4096) -> list[RawSample]:
    """Texts of 4,096 characters from the shared articles."""
    whole = "\n".join(
        json.loads(line)["text"] for line in (SHARED_DATA / "text" / "wiki_demo.jsonl").open("r", -1, "utf-8")
    )
    cut = [whole[start : start + chars] for start in range(0, len(whole), chars)][:count]
    return [RawSample(str(n), "t", n, segments=(Segment(text),)) for n, text in enumerate(cut)]


def faces(count: int) -> dict[str, float]:
    """Recall and precision against the other detector's boxes of at least the smallest size that is looked for."""
    records = [json.loads(line) for line in (SHARED_DATA / "pairs" / "pairs.jsonl").open(encoding="utf-8")]
    finder = Faces()
    expected = found = hit = right = 0
    for record in records[:: max(1, len(records) // count)][:count]:
        with Image.open(SHARED_DATA / "pairs" / record["file"]) as file:
            image = file.convert("RGB")
        boxes = [_scaled(box, image.size) for box in record["auto_faces_res10ssd"] if box[4] >= 0.5]
        least = MIN_FACE * max(image.size) / SIDE
        boxes = [box for box in boxes if min(box[2] - box[0], box[3] - box[1]) >= least]
        seen = finder.find(image)
        expected, found = expected + len(boxes), found + len(seen)
        hit += sum(any(_overlap(face, box) >= 0.3 for face in seen) for box in boxes)
        right += sum(any(_overlap(face, box) >= 0.3 for box in boxes) for face in seen)
    return {"faces_expected": expected, "face_recall": hit / max(1, expected), "face_precision": right / max(1, found)}


def search(rows: int, near: bool) -> dict[str, float]:
    """Seconds and peak MiB of this process for select's search over synthetic samples."""
    random = np.random.default_rng(0)
    config = SelectConfig(perceptual_duplicates=True, near_duplicates=near)
    started, disk = time.perf_counter(), 0

    def numbers(*shape: int, below: int = 2**63) -> Any:
        return random.integers(0, below, shape).astype(np.uint64)

    with tempfile.TemporaryDirectory() as folder, duplicates(config, Path(folder)) as found:
        places = []
        for start in range(0, rows, PART):
            n = min(PART, rows - start)
            bands = None
            if near:  # half of a text's bands are those of a group of texts
                group = numbers(n, 1, below=2 * rows) * np.uint64(1_000_003) + np.arange(14, dtype=np.uint64)
                mixed = np.where(random.random((n, 14)) < 0.5, group, numbers(n, 14))
                bands = np.repeat(np.arange(n), 14), mixed.reshape(-1)
            contents = np.repeat(numbers(n, 1, below=4 * rows), 2, axis=1)
            places.append(found.add(Candidates(numbers(n, 2), contents, numbers(n, below=4 * rows), bands)))
        found.decide("synthetic")
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        kept = sum(fate == 0 for place in places for fate in found.decisions(*place)[1])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "mib": peak_mib(), "disk_bytes_per_row": disk / rows, "kept": kept / rows}


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")
    options.add_argument("--pictures", type=int, default=64)
    options.add_argument("--faces", type=int, default=1000, help="pictures that faces are looked for in")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--rows", type=int, default=5_000_000)
    options.add_argument("--search", choices=("exact", "near"), help=argparse.SUPPRESS)
    args = options.parse_args(argv)
    if args.search:
        print(json.dumps(search(args.rows, args.search == "near")))
        return
    print(machine_line("duckdb", "onnxruntime", "py3langid", "datasketch"))
    figures: dict[str, float] = {}
    pictures = costs(real_pairs(args.pictures), "pairs", PICTURE_OPTIONS, args.rounds)
    texts = costs(real_texts(args.pictures), "text", TEXT_OPTIONS, args.rounds)
    for what, table in (("a pair", pictures), ("a text of 4,096 characters", texts)):
        print(f"\nmilliseconds {what}:")
        for name, value in table.items():
            print(f"  {name:16} {value:8.2f}")
    figures |= {f"pair_ms_{name.replace(' ', '_')}": value for name, value in pictures.items()}
    figures |= {f"text_ms_{name}": value for name, value in texts.items()}
    figures |= faces(args.faces)
    for kind in ("exact", "near"):
        for rows in (args.rows // 5, args.rows):
            done = _in_a_process(["--search", kind, "--rows", str(rows)])
            print(f"select, {kind}, {rows:,} samples: {done['seconds']:.0f} s, {done['mib']:,.0f} MiB")
            size = "" if rows == args.rows else "_of_a_fifth"
            figures |= {f"select_{kind}_{name}{size}": value for name, value in done.items()}
    emit(figures, args.json)


def _in_a_process(arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scan", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _scaled(box: Sequence[float], size: tuple[int, int]) -> Box:
    return box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]


def _overlap(face: Face, box: Box) -> float:
    """Intersection over union."""
    across = min(face.x + face.width, box[2]) - max(face.x, box[0])
    down = min(face.y + face.height, box[3]) - max(face.y, box[1])
    both = max(0.0, across) * max(0.0, down)
    return both / (face.width * face.height + (box[2] - box[0]) * (box[3] - box[1]) - both)


if __name__ == "__main__":
    main()
