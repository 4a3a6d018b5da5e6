"""What a reader of a store that is far away takes from its cache: what the store holds, and nothing else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.sequences import (
    BLOCK,
    FETCHES,
    INFO,
    SequenceReader,
    SequencesInfo,
    encode_file,
    sequence_cache,
    stem,
)

LENGTH = 24
COUNT = 70


@pytest.fixture
def remote() -> Iterator[Storage]:
    yield Storage("memory://sequences-cached")
    fsspec.filesystem("memory").store.clear()


def make(store: Storage, seed: int, count: int = COUNT) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, 65536, (count, LENGTH)).astype(np.uint16)
    starts = np.zeros(tokens.shape, np.bool_)
    starts[:, 0] = True
    for suffix, data in encode_file(tokens, starts).items():
        store.put(f"{stem(0)}.{suffix}", data)
    store.put(INFO, SequencesInfo(sequences=count, length=LENGTH, file_sequences=count).dump())
    return tokens


def flip(store: Storage, suffix: str) -> None:
    data = bytearray(store.get(f"{stem(0)}.{suffix}"))
    data[0] ^= 1
    store.put(f"{stem(0)}.{suffix}", bytes(data))


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_store_made_anew_at_the_same_address_is_read_anew(remote: Storage, tmp_path: Path, where: str) -> None:
    cache = sequence_cache(tmp_path if where == "disk" else None, 1 << 20, LENGTH)
    for seed in (1, 2, 1):
        tokens = make(remote, seed)
        for verify in (True, False):
            np.testing.assert_array_equal(
                SequenceReader(remote, verify=verify, cache=cache).read(range(COUNT))[0], tokens
            )


def test_what_was_read_unverified_is_never_handed_out_as_verified(remote: Storage, tmp_path: Path) -> None:
    tokens, cache = make(remote, 1), sequence_cache(tmp_path, 1 << 20, LENGTH)
    flip(remote, "u16")
    spoiled, _, _ = SequenceReader(remote, verify=False, cache=cache).read([0, 1])
    assert spoiled[0, 0] == tokens[0, 0] ^ 1
    with pytest.raises(StoreError, match="do not match their checksum"):
        SequenceReader(remote, cache=cache).read([0])
    flip(remote, "u16")
    np.testing.assert_array_equal(SequenceReader(remote, cache=cache).read([0, 1])[0], tokens[:2])


def test_the_unverified_are_cached_for_the_unverified(
    remote: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, cache, asked, read = (
        make(remote, 1),
        sequence_cache(tmp_path, 1 << 20, LENGTH),
        Counter[str](),
        Storage.range,
    )

    def counted(self: Storage, name: str, start: int, stop: int) -> bytes:
        asked[name] += 1
        return read(self, name, start, stop)

    monkeypatch.setattr(Storage, "range", counted)
    for verify in (False, True):
        for _ in range(3):
            np.testing.assert_array_equal(
                SequenceReader(remote, verify=verify, cache=cache).read([0, 1, 69])[0][2], tokens[69]
            )
        assert asked == dict.fromkeys([f"{stem(0)}.u16", f"{stem(0)}.starts"], 2 * (1 + verify))


def test_a_large_read_keeps_few_blocks_in_memory(remote: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those behind a slow block wait, and no more than twice what is fetched at once are ever begun."""
    tokens, begun = make(remote, 1, 100 * BLOCK), Counter[int]()
    fetch = SequenceReader._fetch_block

    def counted(self: SequenceReader, place: tuple[int, int]) -> Any:
        begun[place[1]] += 1
        if place[1] == 0:
            time.sleep(1)  # the others could do everything meanwhile
            assert len(begun) <= 2 * FETCHES
        return fetch(self, place)

    monkeypatch.setattr(SequenceReader, "_fetch_block", counted)
    found, _, _ = SequenceReader(remote).read(range(0, 100 * BLOCK, BLOCK))
    np.testing.assert_array_equal(found, tokens[::BLOCK])
    assert len(begun) == 100
