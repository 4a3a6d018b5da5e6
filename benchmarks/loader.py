"""The loader against other readers of packed tokens, and how soon it starts in the middle of a full-size run.

Every contender delivers micro-batches of the same tensors (tokens, labels, documents, positions, masks, borders) from
the same sequences, checked once before anything is timed: Calumma's loader; MosaicML Streaming iterated over, and its
``ds[i]``; a ``datasets`` Arrow folder; megatron-core's indexed reader. The others read in order; what they do not hold
is made of what they hold by Calumma's own ``make_batch``, which is kind to them. Time is that of one core: processor
time of the process and its threads. *Warm*: files in the page cache, a second epoch. *Cold*: out of the page cache (as
far as the disk lets go of it), everything opened anew, and so Calumma verifies every checksum; the others none.

    python -m benchmarks.loader --json

``make install`` brings MosaicML Streaming and megatron-core, ``pip install -e '.[bench]'`` datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import emit, machine_line, median, speed_ratio, timed
from benchmarks.loader_data import LENGTH, V, write_all, write_full
from benchmarks.peers import megatron_indexed, streaming
from infra.storage import Storage
from infra.store.sequences import sequence_cache
from model.data.batch import Batch, make_batch
from model.data.loader import SequenceLoader
from model.vocabulary import BOS, PAD

MICRO = 8


def batches_of(rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Batch]:
    """Micro-batches of single rows: ids and packed starts."""
    tokens, starts = [], []
    for row, bits in rows:
        tokens.append(row)
        starts.append(bits)
        if len(tokens) == MICRO:
            unpacked = np.unpackbits(np.stack(starts), axis=1, bitorder="little").view(np.bool_)
            yield make_batch(np.stack(tokens), unpacked, None, np.zeros(MICRO), V)
            tokens, starts = [], []


class Contenders:
    """Everybody's reader, opened when it is first needed and anew after :meth:`close`."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self.close()

    def close(self) -> None:
        self._open: dict[str, Any] = {}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._open:
            self._open[name] = make()
        return self._open[name]

    def calumma(self) -> Iterator[Batch]:
        loader = self._once(
            "calumma", lambda: SequenceLoader(Storage(self.folder / "calumma"), "pretrain", MICRO, prefetch=0)
        )
        loader.load_state_dict(loader.state_dict() | {"consumed": 0})
        yield from loader

    def _streaming(self) -> Any:
        return self._once(
            "streaming",
            lambda: streaming().StreamingDataset(local=str(self.folder / "mds"), shuffle=False, batch_size=MICRO),
        )

    def streaming(self) -> Iterator[Batch]:
        yield from batches_of((s["tokens"], s["starts"]) for s in self._streaming())

    def streaming_getitem(self) -> Iterator[Batch]:
        data = self._streaming()
        yield from batches_of((s["tokens"], s["starts"]) for s in map(data.__getitem__, range(self.count)))

    def bare_getitem(self) -> Iterator[Any]:
        data = self._streaming()
        yield from map(data.__getitem__, range(self.count))

    def datasets(self) -> Iterator[Batch]:
        from datasets import load_from_disk

        data = self._once("datasets", lambda: load_from_disk(str(self.folder / "arrow")).with_format("arrow"))
        for start in range(0, self.count, MICRO):
            found = data[start : start + MICRO]
            tokens, bits = (
                found[name].combine_chunks().flatten().to_numpy().reshape(MICRO, -1) for name in ("tokens", "starts")
            )
            unpacked = np.unpackbits(bits, axis=1, bitorder="little").view(np.bool_)
            yield make_batch(tokens, unpacked, None, np.zeros(MICRO), V)

    def megatron(self) -> Iterator[Batch]:
        data = self._once("megatron", lambda: megatron_indexed()(str(self.folder / "megatron" / "tokens-00000")))
        for start in range(0, self.count, MICRO):
            tokens = np.stack([data[row] for row in range(start, start + MICRO)])
            starts = tokens == BOS  # it holds no borders: they are looked for
            starts[:, 1:] |= (tokens[:, 1:] == PAD) & (tokens[:, :-1] != PAD)
            yield make_batch(tokens, starts, None, np.zeros(MICRO), V)


def check_equal(contenders: Contenders, names: list[str]) -> bool:
    """Whether all deliver the same tensors, sequence by sequence; they come in different orders."""

    def rows(name: str) -> dict[bytes, list[bytes]]:
        keys = ("labels", "documents", "positions", "image", "modality", "loss_mask")
        found = {}
        for batch in getattr(contenders, name)():
            for row in range(MICRO):
                found[batch["tokens"][row].numpy().tobytes()] = [batch[k][row].numpy().tobytes() for k in keys]
        return found

    expected = rows("calumma")
    return len(expected) == contenders.count and all(rows(name) == expected for name in names)


def drain(batches: Iterable[Any]) -> None:
    """Goes through all of them."""
    for _ in batches:
        pass


def forget(folder: Path) -> None:
    """Has the system drop the files from its page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Microseconds of processor time a sequence for everybody, and the ratios."""
    contenders = Contenders(folder, count)
    peers = ["streaming", "streaming_getitem", "datasets", "megatron"]
    figures: dict[str, Any] = {"sequences": count, "equal": check_equal(contenders, peers)}
    assert figures["equal"], "the contenders do not deliver the same tensors"
    named = {name: getattr(contenders, name) for name in ("calumma", *peers, "bare_getitem")}
    warm = timed({name: lambda f=f: drain(f()) for name, f in named.items()}, rounds, time.process_time)

    def cold(make: Callable[[], Iterator[Any]]) -> Callable[[], None]:
        def run() -> None:
            contenders.close()
            forget(folder)
            drain(make())

        return run

    chosen = {name: cold(named[name]) for name in ("calumma", "streaming", "bare_getitem")}
    colds = timed(chosen, max(1, rounds // 2), time.process_time)
    for state, seconds in (("", warm), ("_cold", colds)):
        for name, spent in seconds.items():
            figures[f"{name}{state}_us"] = median(spent) / count * 1e6
        figures[f"ratio_to_streaming{state}"] = speed_ratio(seconds["streaming"], seconds["calumma"])
        figures[f"ratio_to_streaming_getitem{state}"] = speed_ratio(seconds["bare_getitem"], seconds["calumma"])
    figures["ratio_to_datasets"] = speed_ratio(warm["datasets"], warm["calumma"])
    figures["ratio_to_megatron"] = speed_ratio(warm["megatron"], warm["calumma"])
    return figures


def cached(folder: Path, count: int) -> dict[str, Any]:
    """A store that is not local, by fsspec's memory file system, through the disk cache: first and second epoch."""
    import fsspec

    memory, local = Storage("memory://calumma-loader"), Storage(folder / "calumma")
    for file in local.find():
        memory.put(file.name, local.get(file.name))
    cache = sequence_cache(folder / "cache", 2 * count * 9000, LENGTH)
    spent = []
    for _ in range(2):
        loader = SequenceLoader(memory, "pretrain", MICRO, prefetch=0, cache=cache)
        begun = time.process_time()
        drain(loader)
        spent.append((time.process_time() - begun) / count * 1e6)
    fsspec.filesystem("memory").store.clear()
    return {"remote_us": spent[0], "remote_cached_us": spent[1], "cache_hits": cache.hits, "cache_misses": cache.misses}


def first_batch(folder: Path, position: int) -> dict[str, Any]:
    """Milliseconds and megabytes from nothing but imports to the first micro-batch at a position."""
    state = {"plan": "0" * 32, "run": "pretrain", "consumed": position, "batch": [[0, 2048]]}
    listed: list[str] = []
    sys.addaudithook(lambda event, _: listed.append(event) if event in ("os.listdir", "os.scandir") else None)
    torch.zeros(1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, begun = memory("VmRSS"), time.perf_counter()
    loader = SequenceLoader(Storage(folder), "pretrain", 2048, rank=17, world=256, micro_batch=MICRO, state=state)
    batch = next(iter(loader))
    seconds = time.perf_counter() - begun
    assert batch["tokens"].shape == (MICRO, LENGTH)
    return {
        "ms": seconds * 1e3,
        "mb": (memory("VmHWM") - before) / 1e6,
        "listed": len(listed),
        "total": len(loader.order),
    }


def memory(kind: str) -> int:
    """Bytes in memory: ``VmRSS`` now, ``VmHWM`` at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def start_up(folder: Path, rounds: int) -> dict[str, Any]:
    """The first batch in processes of their own."""
    write_full(folder)
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-m", "benchmarks.loader", "--first-batch", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return {
        "first_batch_at": 2_000_000_000,
        "first_batch_of": found[0]["total"],
        "first_batch_ms": median(f["ms"] for f in found),
        "first_batch_mb": median(f["mb"] for f in found),
        "first_batch_listings": max(f["listed"] for f in found),
    }


def main() -> None:
    """Writes, checks, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=16_384, help="a multiple of 64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--first-batch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.first_batch is not None:
        print(json.dumps(first_batch(arguments.first_batch, 2_000_000_000)))
        return
    print(machine_line("mosaicml-streaming", "datasets", "megatron-core"))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        figures = start_up(folder / "full", 3)
        write_all(folder / "small", arguments.sequences)
        figures |= compare(folder / "small", arguments.sequences, arguments.rounds)
        figures |= cached(folder / "small", arguments.sequences)
    emit(figures, arguments.json)


if __name__ == "__main__":
    main()
