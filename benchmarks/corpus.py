"""A mixed corpus of generated samples with bad files among them, in the formats that people have, quick to make.

Each of its samples differs from every other except for the duplicates that are put in on purpose.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SOURCES = ("photos", "shards", "columns", "prose", "archived", "stories")
SHARES = (0.3, 0.2, 0.1, 0.2, 0.1, 0.1)
BAD = 0.01
DUPLICATE = 0.01
WORDS = ("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "larch")


def make_corpus(folder: Path, samples: int, seed: int = 0) -> list[dict[str, Any]]:
    """Writes the corpus unless it is there; its sources as a recipe names them."""
    counts = [round(share * samples) for share in SHARES]
    makers: tuple[Callable[[Path, int, random.Random], dict[str, Any]], ...] = (
        _photos,
        _shards,
        _columns,
        _prose,
        _archived,
        _stories,
    )
    sources = []
    for name, count, maker in zip(SOURCES, counts, makers, strict=True):
        place, done = folder / name, folder / f"{name}.json"
        if not done.exists():
            place.mkdir(parents=True, exist_ok=True)
            done.write_text(json.dumps(maker(place, count, random.Random(f"{seed} {name}"))))
        sources.append({"name": name, "path": name, **json.loads(done.read_text())})
    return sources


def picture(rng: random.Random, size: tuple[int, int] = (40, 32)) -> bytes:
    """A small JPEG of a few shapes."""
    image = Image.new("RGB", size, _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        draw.ellipse((x - rng.randrange(2, 14), y - rng.randrange(2, 14), x + 9, y + 7), _colour(rng))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=90)
    return sink.getvalue()


def sentence(rng: random.Random, words: int = 12) -> str:
    """Some words and a number, so that no two are alike."""
    return " ".join(rng.choice(WORDS) for _ in range(words)) + f" {rng.randrange(10**9)}."


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _pictures(count: int, rng: random.Random) -> list[bytes]:
    """Pictures of which some are repeated and some are cut off, empty or no pictures at all."""
    found: list[bytes] = []
    for _ in range(count):
        chance = rng.random()
        data = found[rng.randrange(len(found))] if found and chance < DUPLICATE else picture(rng)
        if chance > 1 - BAD:
            data = rng.choice((data[: len(data) // 2], b"", b"<html>not found</html>"))
        found.append(data)
    return found


def _photos(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """A JSONL list with pictures beside it; some lines are no JSON, some pictures missing."""
    lines = []
    for number, data in enumerate(_pictures(count, rng)):
        name = f"{number // 1000:03}/{number:06}.jpg"
        if rng.random() > BAD / 2:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        line = json.dumps({"file": name, "caption": [sentence(rng, 5), sentence(rng, 7)]})
        lines.append(line if rng.random() > BAD / 2 else line[: len(line) // 2])
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n")
    return {"type": "pairs", "kind": "pairs", "path": f"{folder.name}/list.jsonl"}


def _shards(folder: Path, count: int, rng: random.Random, each: int = 80) -> dict[str, Any]:
    """WebDataset tars; some captions are missing."""
    pictures = _pictures(count, rng)
    for first in range(0, count, each):
        with tarfile.open(folder / f"{first // each:05}.tar", "w") as tar:
            for number, data in enumerate(pictures[first : first + each], first):
                members = [(f"{number:08}.jpg", data)]
                if rng.random() > BAD / 2:
                    members.append((f"{number:08}.txt", sentence(rng, 6).encode()))
                for name, content in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return {"type": "webdataset", "kind": "pairs"}


def _columns(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Parquet with the pictures' bytes; some captions are null."""
    rows = [
        {"image": {"bytes": data, "path": f"{n}.jpg"}, "caption": sentence(rng, 6) if rng.random() > BAD / 2 else None}
        for n, data in enumerate(_pictures(count, rng))
    ]
    for number, first in enumerate(range(0, count, 500)):
        table = pa.Table.from_pylist(rows[first : first + 500])
        pq.write_table(table, folder / f"{number:04}.parquet", row_group_size=100)
    return {"type": "pairs-parquet", "kind": "pairs"}


def _prose(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Plain JSONL, cut into byte ranges; some lines are damaged, some lack the text, some repeat another."""
    lines: list[bytes] = []
    for _ in range(count):
        chance = rng.random()
        line = json.dumps({"text": " ".join(sentence(rng) for _ in range(4))}).encode()
        if chance < BAD:
            line = rng.choice((line[:40], b'{"words": 3}', b'{"text": "\xff\xfe"}', b""))
        elif chance < BAD + DUPLICATE and lines:
            line = rng.choice(lines)
        lines.append(line)
    (folder / "prose.jsonl").write_bytes(b"\n".join(lines))
    return {"type": "text", "kind": "text"}


def _archived(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Gzipped JSONL; the last file is cut off in the middle."""
    each = 80
    for number, first in enumerate(range(0, count, each)):
        lines = [json.dumps({"text": sentence(rng, 40)}) for _ in range(first, min(first + each, count))]
        data = gzip.compress("\n".join(lines).encode(), mtime=0)
        last = first + each >= count
        (folder / f"{number:04}.jsonl.gz").write_bytes(data[: len(data) * 2 // 3] if last else data)
    return {"type": "text", "kind": "text"}


def _stories(folder: Path, count: int, rng: random.Random) -> dict[str, Any]:
    """Interleaved JSONL with two pictures each; some pictures are missing or damaged, and the document goes without."""
    (folder / "images").mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        segments: list[Any] = [sentence(rng)]
        for place in range(2):
            name = f"{number:06}-{place}.jpg"
            data = picture(rng)
            chance = rng.random()
            if chance > BAD:
                (folder / "images" / name).write_bytes(data if chance > 2 * BAD else data[: len(data) // 2])
            segments += [{"type": "image", "image": name}, sentence(rng)]
        lines.append(json.dumps({"segments": segments}))
    (folder / "stories.jsonl").write_text("\n".join(lines) + "\n")
    return {
        **{"type": "interleaved", "kind": "interleaved", "path": f"{folder.name}/stories.jsonl"},
        **{"options": {"images": "images"}, "missing_images": "drop"},
    }
