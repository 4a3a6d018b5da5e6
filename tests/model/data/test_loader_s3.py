"""The loader on a real S3 server: the batches of a disk, whatever breaks, and no more requests than needed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.block_cache import BlockCache
from infra.store.sequences import sequence_cache
from model.data.loader import Batch, SequenceLoader, held_out
from tests.model.data.reading import same, through_workers
from tests.s3.proxy import Proxy


@pytest.fixture
def remote(mix_store: Storage, s3_bucket: str) -> Storage:
    store = Storage(s3_bucket)
    for file in mix_store.find():
        store.put(file.name, mix_store.get(file.name))
    return store


@pytest.fixture
def cache(tmp_path: Path, fakes: Any) -> BlockCache:
    return sequence_cache(tmp_path / "cache", 1 << 20, fakes.length)


def batches(store: Storage, run: Any = "pretrain", **options: Any) -> list[Batch]:
    return list(SequenceLoader(store, run, 4, micro_batch=2, **options))


def of_blocks(proxy: Proxy) -> int:
    return proxy.count("GET", r"seq-\d+\.(u16|starts|loss|sums)")


@pytest.mark.parametrize("run", ["pretrain", "finetune"])
def test_the_same_batches_as_from_a_disk(mix_store: Storage, remote: Storage, cache: BlockCache, run: str) -> None:
    expected = batches(mix_store, run)
    assert same(batches(remote, run), expected)
    assert same(batches(remote, run, cache=cache, prefetch=0), expected)
    assert same(batches(remote, run, cache=cache, verify=False), expected)
    for a, b in zip(held_out(mix_store, "a"), held_out(remote, "a"), strict=True):
        assert torch.equal(a["tokens"], b["tokens"])


def test_faults_that_pass_change_nothing(
    mix_store: Storage, remote: Storage, cache: BlockCache, faulty_s3: Proxy
) -> None:
    for fault in ("slow_down", "error", "refuse", "lose", "cut"):
        faulty_s3.add(fault, method="GET", path="seq-", times=2)
    assert same(batches(remote, cache=cache), batches(mix_store))
    assert sum(faulty_s3.done.values()) == 10
    assert of_blocks(faulty_s3) > 10


def test_what_is_cached_is_not_asked_for_again(
    mix_store: Storage, remote: Storage, cache: BlockCache, faulty_s3: Proxy
) -> None:
    expected = batches(mix_store)
    assert same(batches(remote, cache=cache, prefetch=0), expected)
    # 25 and 11 sequences, 20 a file: three files of one block, each of two kinds and a file of checksums.
    assert of_blocks(faulty_s3) == 9
    faulty_s3.reset()
    again = sequence_cache(cache.folder, cache.limit, 24)
    assert same(batches(remote, cache=again, prefetch=0), expected)
    assert of_blocks(faulty_s3) == faulty_s3.count("GET", r"seq-\d+\.sums") == 3  # what the blocks are found by
    assert (again.hits, again.misses) == (36, 0)
    assert faulty_s3.count("GET", "list-type") == 0


def test_held_out_sequences_fetch_each_block_once(remote: Storage, faulty_s3: Proxy) -> None:
    assert len(list(held_out(remote, "a", batch=1))) == 5
    assert of_blocks(faulty_s3) == 3


def test_a_cache_of_one_block_only_costs_requests(mix_store: Storage, remote: Storage, tmp_path: Path) -> None:
    cache = sequence_cache(tmp_path, 20_000, 24)
    assert cache.slots == 4
    small = sequence_cache(tmp_path, 5_000, 24)
    assert small.slots == 1
    assert same(batches(remote, cache=small), batches(mix_store))
    assert small.misses > 3


@pytest.mark.parametrize("suffix", ["u16", "starts", "sums"])
def test_a_byte_flipped_in_the_bucket_stops_the_loader(remote: Storage, cache: BlockCache, suffix: str) -> None:
    name = f"parts/pretrain/stage-1/seq-000001.{suffix}"
    data = bytearray(remote.get(name))
    data[len(data) // 2] ^= 4
    remote.put(name, bytes(data))
    with pytest.raises(StoreError, match=r"seq-000001: sequences 0 to 4 of this file do not match their checksum"):
        batches(remote, cache=cache)
    with pytest.raises(StoreError, match="do not match their checksum"):
        batches(remote, cache=cache)  # nothing of it was kept


def test_a_byte_flipped_on_the_way_is_read_once_more(
    mix_store: Storage, remote: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, read, flipped = batches(mix_store), Storage.range, Counter[str]()

    def damaged(self: Storage, name: str, start: int, stop: int) -> bytes:
        data = read(self, name, start, stop)
        if name.endswith(".u16") and flipped[name] < times:
            flipped[name] += 1
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    monkeypatch.setattr(Storage, "range", damaged)
    times = 1
    assert same(batches(remote), expected)
    assert flipped
    flipped.clear()
    times = 2  # it is not read a third time, and what came is never served
    with pytest.raises(StoreError, match="do not match their checksum"):
        batches(remote, prefetch=0)


def test_bytes_flipped_in_the_cache_are_fetched_anew(
    mix_store: Storage, remote: Storage, cache: BlockCache, faulty_s3: Proxy
) -> None:
    expected = batches(mix_store)
    assert same(batches(remote, cache=cache), expected)
    assert cache.folder is not None
    path = next(cache.folder.glob("*.cache"))
    data = bytearray(path.read_bytes())
    for at in range(cache._data + 40, len(data), 97):  # in every row of every block
        data[at] ^= 0x80
    path.write_bytes(data)
    faulty_s3.reset()
    again = sequence_cache(cache.folder, cache.limit, 24)
    assert same(batches(remote, cache=again), expected)
    assert again.damaged > 0
    assert of_blocks(faulty_s3) > 0


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 4])
def test_workers_share_the_cache(
    mix_store: Storage, remote: Storage, cache: BlockCache, faulty_s3: Proxy, workers: int
) -> None:
    loader = SequenceLoader(remote, "pretrain", 4, micro_batch=2, cache=cache)
    assert same(list(through_workers(loader, workers)), batches(mix_store))
    assert of_blocks(faulty_s3) >= 9
    faulty_s3.reset()
    again = SequenceLoader(remote, "pretrain", 4, micro_batch=2, cache=cache)
    assert same(list(through_workers(again, workers)), batches(mix_store))
    assert of_blocks(faulty_s3) == faulty_s3.count("GET", r"seq-\d+\.sums") <= 3 * workers
