from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import ResourceError
from infra.store import block_cache
from infra.store.block_cache import BlockCache, block_key

ROWS, SIZE = 4, 32
SLOT = ROWS * (8 + SIZE) + 32
HEAD = 64


def open_cache(folder: Path | None, blocks: int = 5, spare: int = 0) -> BlockCache:
    return BlockCache(folder, HEAD + blocks * SLOT + spare, rows=ROWS, row_bytes=SIZE)


def block(number: int, rows: int = ROWS, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (rows, size)).astype(np.uint8)


def whole(cache: BlockCache, number: int, rows: int = ROWS, size: int = SIZE) -> bool:
    """Whether a block is there; what is there must be right."""
    found = [cache.row(block_key(number), row, size) for row in range(rows)]
    for row, data in enumerate(found):
        assert data is None or data == block(number, rows, size)[row].tobytes()
    return all(data is not None for data in found)


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_gives_back_what_was_put_and_forgets_what_was_used_least(tmp_path: Path, where: str) -> None:
    cache = open_cache(tmp_path / "cache" if where == "disk" else None, 3, spare=SLOT - 1)
    for number in (0, 1, 2):
        assert not whole(cache, number)
        cache.put(block_key(number), block(number))
    assert all(whole(cache, number) for number in (1, 2, 0))
    cache.put(block_key(3), block(3))
    assert not whole(cache, 1)
    assert all(whole(cache, number) for number in (0, 2, 3))
    cache.put(block_key(0), block(0))  # again: takes no second place
    assert cache.blocks() == 3
    assert all(whole(cache, number) for number in (0, 2, 3))
    assert cache.damaged == 0
    assert cache.hits == 9 * ROWS


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(blocks=st.integers(1, 40), numbers=st.lists(st.integers(0, 60), max_size=80))
def test_never_holds_more_than_its_limit_nor_anything_wrong(
    tmp_path_factory: pytest.TempPathFactory, blocks: int, numbers: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = open_cache(folder, blocks)
    for number in numbers:
        if not whole(cache, number):
            cache.put(block_key(number), block(number))
        assert whole(cache, number)  # what was just put is there
    assert cache.blocks() <= min(blocks, len(set(numbers)))
    assert sum(f.stat().st_size for f in folder.iterdir()) <= HEAD + blocks * SLOT


def test_short_blocks_and_rows(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.put(block_key(1), block(1, 2, 20))
    assert whole(cache, 1, 2, 20)
    with pytest.raises(ValueError, match="5 rows of 32 bytes; room is for 4 of 32"):
        cache.put(block_key(2), block(2, 5))


def test_another_process_finds_it_and_another_limit_starts_anew(tmp_path: Path) -> None:
    first = open_cache(tmp_path)
    first.put(block_key(1), block(1))
    assert whole(open_cache(tmp_path), 1)
    assert whole(pickle.loads(pickle.dumps(first)), 1)
    larger = open_cache(tmp_path, 9)
    assert larger.blocks() == 0
    assert whole(first, 1)  # who has it open keeps the old one
    assert sorted(f.name for f in tmp_path.iterdir()) == ["blocks-4x32.cache", "lock"]


@pytest.mark.parametrize("at", range(0, HEAD + 5 * SLOT, 23))
def test_a_damaged_byte_anywhere_is_never_served(tmp_path: Path, at: int) -> None:
    cache = open_cache(tmp_path)
    for number in range(5):
        cache.put(block_key(number), block(number))
    path = tmp_path / "blocks-4x32.cache"
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    again = open_cache(tmp_path)
    for number in range(5):
        if not whole(again, number):
            again.put(block_key(number), block(number))
    for number in range(5):
        whole(again, number)


def _hammer(folder: Path, seed: int) -> None:
    cache = open_cache(folder, 20)
    rng = np.random.default_rng(seed)
    for number in rng.integers(0, 40, 600).tolist():
        if not whole(cache, number):
            cache.put(block_key(number), block(number))


def _hammer_together(folder: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    workers = [context.Process(target=_hammer, args=(folder, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_it(tmp_path: Path, method: str) -> None:
    # From a process of its own: what else was tested here may have left threads and hooks that a fork would take along.
    parent = multiprocessing.get_context("spawn").Process(target=_hammer_together, args=(tmp_path, method))
    parent.start()
    parent.join()
    assert parent.exitcode == 0
    assert open_cache(tmp_path, 20).blocks() == 20


def test_a_forked_process_opens_it_for_itself(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.put(block_key(1), block(1))
    context: Any = multiprocessing.get_context("fork")
    found = context.Queue()
    child = context.Process(target=lambda: (cache.put(block_key(2), block(2)), found.put(whole(cache, 1))))
    child.start()
    assert found.get(timeout=60)
    child.join()
    assert whole(cache, 2)


def _write_for_ever(folder: Path) -> None:
    cache, number = open_cache(folder, 20), 0
    while True:
        cache.put(block_key(number % 40), block(number % 40))
        number += 1


def test_a_killed_writer_leaves_nothing_wrong(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("fork")
    for round_ in range(8):
        writer = context.Process(target=_write_for_ever, args=(tmp_path,))
        writer.start()
        time.sleep(0.05 + 0.01 * round_)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        cache = open_cache(tmp_path, 20)
        for number in range(40):
            whole(cache, number)
        cache.put(block_key(99), block(99))  # and nobody waits for its lock
        assert whole(cache, 99)


def test_a_full_disk_costs_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(tmp_path)
    cache.put(block_key(1), block(1))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(block_cache.os, "pwrite", full)
    cache.put(block_key(2), block(2))
    cache.put(block_key(1), block(1))
    assert not whole(cache, 2)
    assert not whole(cache, 1)
    monkeypatch.undo()
    cache.put(block_key(1), block(1))
    assert whole(cache, 1)


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_cache_that_is_dropped_closes_its_file(tmp_path: Path) -> None:
    kept, before = open_cache(tmp_path), descriptors()
    for _ in range(20):
        assert not whole(open_cache(tmp_path), 1)
    assert descriptors() == before
    kept.put(block_key(1), block(1))
    assert whole(kept, 1)


def test_a_forked_process_closes_its_parents_file(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    context: Any = multiprocessing.get_context("fork")
    found = context.Queue()
    child = context.Process(target=lambda: found.put((descriptors(), whole(cache, 1), descriptors())))
    child.start()
    before, _, after = found.get(timeout=60)
    child.join()
    assert before == after
    cache.put(block_key(1), block(1))  # and the parent's stays open
    assert whole(cache, 1)


def test_a_file_that_gives_way_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = open_cache(tmp_path, 400)
    for number in range(400):
        small.put(block_key(number), block(number))
    os.sync()
    taken = (tmp_path / "blocks-4x32.cache").stat().st_blocks * 512
    assert taken > 50_000
    room = os.statvfs(tmp_path)
    nothing = os.statvfs_result((room.f_bsize, 1, room.f_blocks, 0, 0, *room[5:]))
    monkeypatch.setattr(os, "statvfs", lambda folder: nothing)
    assert open_cache(tmp_path, 200).blocks() == 0
    with pytest.raises(ResourceError, match=r"cannot be made there .[\d,]+ bytes are free"):
        open_cache(tmp_path, 800)


def test_errors_name_the_folder_and_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="a cache of 100 bytes: one block takes 256"):
        BlockCache(tmp_path, 100, rows=ROWS, row_bytes=SIZE)
    with pytest.raises(ResourceError, match=r"blocks-4x32\.cache: a cache of 1,000,000,000,000,000 bytes .*are free"):
        BlockCache(tmp_path, 10**15, rows=ROWS, row_bytes=SIZE)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be made there"):
        open_cache(tmp_path / "file")
