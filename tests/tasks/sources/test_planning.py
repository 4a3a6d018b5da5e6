"""Planning over a simulated listing of 100,000 files: what is opened, how long it takes, what it keeps in memory."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.storage import FileInfo, Storage
from tasks.sources.base import Source
from tasks.sources.config import SourceConfig
from tasks.sources.interleaved import InterleavedFiles
from tasks.sources.messages import MessageFiles
from tasks.sources.pairs import PairFiles
from tasks.sources.root import Root
from tasks.sources.text import TextFiles

TARGET = 8192


class Listing(Storage):
    """A storage of equal files, which counts what is asked of it."""

    def __init__(self, count: int, suffix: str, content: bytes, size: int) -> None:
        super().__init__("/nowhere")
        self._names, self._content, self._size = [f"part-{n:06d}{suffix}" for n in range(count)], content, size
        self.asked: Counter[str] = Counter()

    def find(self, folder: str = "") -> Iterator[FileInfo]:
        self.asked["find"] += 1
        for name in self._names:
            yield FileInfo(name, self._size, "stamp")

    def list(self, folder: str = "", suffix: str = "") -> list[str]:
        self.asked["list"] += 1
        return list(self._names)

    def info(self, name: str = "") -> FileInfo | None:
        self.asked["info"] += 1
        return FileInfo(name, self._size, "stamp")

    def range(self, name: str, start: int, stop: int) -> bytes:
        self.asked[f"read {name}"] += 1
        return self._content[start:stop]

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        self.asked[f"read {name}"] += 1
        yield io.BytesIO(self._content)


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["x" * 100] * 20_000}), sink)
    return sink.getvalue()


JSON = json.dumps({"text": "x" * 200, "file": "x.png", "caption": "c"}).encode() + b"\n"
TSV = b"file\tcaption\n" + b"x.png\tcaption\n" * 1000
CASES: dict[str, tuple[Callable[..., Source], str, bytes, int, int]] = {
    # reader, suffix, content of each file, its size as listed, work items a file (0: slices of the folder)
    "text jsonl": (TextFiles, ".jsonl", JSON * 5000, len(JSON) * 3 * TARGET, 3),
    "text gz": (TextFiles, ".jsonl.gz", b"", 10_000, 1),
    "text plain": (TextFiles, ".txt", b"", 10_000, 0),
    "text parquet": (TextFiles, ".parquet", parquet_bytes(), len(parquet_bytes()), 3),
    "pairs jsonl": (PairFiles, ".jsonl", JSON * 5000, len(JSON) * 3 * TARGET, 3),
    "pairs tsv": (PairFiles, ".tsv", TSV, 3 * len(TSV), 1),
    "pairs csv": (PairFiles, ".csv", TSV.replace(b"\t", b","), 3 * len(TSV), 1),
    "pairs folder": (PairFiles, ".png", b"", 10_000, 0),
    "interleaved": (InterleavedFiles, ".jsonl", JSON * 5000, len(JSON) * 3 * TARGET, 3),
    "messages": (MessageFiles, ".jsonl.zst", b"", 10_000, 1),
}


@pytest.mark.parametrize(("case", "files"), [(case, 5_000) for case in CASES] + [("text jsonl", 100_000)])
def test_planning_reads_at_most_the_first_file(case: str, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, suffix, content, size, of_file = CASES[case]
    storage = Listing(files, suffix, content, size)
    monkeypatch.setattr(Root, "of", classmethod(lambda cls, url: cls(storage)))
    found = reader(SourceConfig(name="s", type="x", kind="text", path="x"), Path())
    started = time.perf_counter()
    items = sum(1 for _ in found.work_items(TARGET))
    seconds = time.perf_counter() - started
    assert items == (of_file * files or -(-files // TARGET))
    found.digest()
    read = {name: count for name, count in storage.asked.items() if name.startswith("read")}
    assert set(read) <= {f"read part-000000{suffix}"}
    assert sum(read.values()) <= 2, "the header and the mean length of a line"
    assert storage.asked["find"] <= 6
    assert storage.asked["info"] == 0
    assert seconds < 20, f"{seconds:.1f} s"


def test_planning_keeps_no_list_of_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Listing(10_000, ".jsonl", JSON * 5000, len(JSON) * 3 * TARGET)
    monkeypatch.setattr(Root, "of", classmethod(lambda cls, url: cls(storage)))
    found = TextFiles(SourceConfig(name="s", type="x", kind="text", path="x"), Path())
    tracemalloc.start()
    try:
        for _ in found.work_items(TARGET):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20, f"{peak:,} bytes; the sample of the first file is 1 MiB"
