from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard

from infra.errors import StoreError
from infra.storage import Storage
from tasks.sources import packed as packed_module
from tasks.sources.packed import DAMAGED, opened
from tests.tasks.sources.reading import FailingDisk

PACKERS: dict[str, Callable[[bytes], bytes]] = {"f.gz": gzip.compress, "f.zst": zstandard.compress}
TEXT = b"".join(b"%d %s\n" % (n, random.Random(n).randbytes(9).hex().encode()) for n in range(40_000))


def unpack(folder: Path, name: str, data: bytes) -> tuple[bytes, type[Exception] | None]:
    (folder / name).write_bytes(data)
    found = b""
    try:
        with opened(Storage(folder), name) as f:
            while piece := f.read1(10_000):  # type: ignore[attr-defined]
                found += piece
    except DAMAGED as e:
        return found, type(e)
    return found, None


@pytest.mark.parametrize("name", PACKERS)
def test_packed_files_are_read_also_in_several_pieces(tmp_path: Path, name: str) -> None:
    pack = PACKERS[name]
    assert unpack(tmp_path, name, pack(TEXT)) == (TEXT, None)
    assert unpack(tmp_path, name, pack(TEXT) + pack(b"more") + pack(b"") + pack(b"end")) == (TEXT + b"moreend", None)
    assert unpack(tmp_path, name, b"") == (b"", None)
    assert unpack(tmp_path, name.upper(), pack(TEXT)) == (TEXT, None)


@pytest.mark.parametrize("name", PACKERS)
def test_a_damaged_file_gives_what_lies_before_the_damage(tmp_path: Path, name: str) -> None:
    packed = PACKERS[name](TEXT)
    for cut in (1, 5, 100, len(packed) // 2):
        found, error = unpack(tmp_path, name, packed[:-cut])
        assert error is not None, cut
        assert TEXT.startswith(found)
        assert len(found) > (len(TEXT) - 2 * (1 << 17)) * (len(packed) - cut) / len(packed)
    found, error = unpack(tmp_path, name, packed + b"garbage")
    assert (found, error is None) == (TEXT, False)
    assert unpack(tmp_path, name, b"garbage")[1] is not None
    assert unpack(tmp_path, name, packed[:3])[1] is not None


@pytest.mark.parametrize("name", ["f", *PACKERS])
def test_a_disk_that_fails_is_no_damage(tmp_path: Path, name: str) -> None:
    packed = PACKERS.get(name, bytes)(TEXT)
    (tmp_path / name).write_bytes(packed)
    for after in (0, 100, len(packed) // 2):
        with (
            pytest.raises(StoreError, match=rf"{tmp_path}/{name}: .*Input/output error.*run again"),
            opened(FailingDisk(tmp_path, after), name) as f,
        ):
            f.read()


def test_a_small_file_cannot_fill_the_memory(tmp_path: Path) -> None:
    packer = zstandard.ZstdCompressor().compressobj()
    bomb = b"".join(packer.compress(bytes(1 << 24)) for _ in range(20)) + packer.flush()
    assert len(bomb) < 50_000
    (tmp_path / "f.zst").write_bytes(bomb)
    largest = 0

    class Watched(packed_module._Zstandard):
        def readinto(self, buffer: Any) -> int:
            nonlocal largest
            count = super().readinto(buffer)
            largest = max(largest, len(self._unpacked))
            return count

    with open(tmp_path / "f.zst", "rb") as f:
        reader, size = io.BufferedReader(cast("io.RawIOBase", Watched(f)), 1 << 18), 0
        while piece := reader.read1():
            size += len(piece)
    assert size == 20 << 24
    assert 0 < largest <= 1 << 27
