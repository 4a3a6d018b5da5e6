from __future__ import annotations

import gzip
import io
import itertools
import random
import tarfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.sources.archives import MAX_HEADER_BYTES, DamagedArchive, Member, members

NAMES = st.text(st.sampled_from("ab/.é漢_"), min_size=1, max_size=150).map(lambda s: f"k{s}k")
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8)


def tar_of(files: list[tuple[str | tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            if member.type == tarfile.REGTYPE:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def read(data: bytes, max_bytes: int = 1 << 20) -> list[Member]:
    return list(members(io.BytesIO(data), lambda name: True, max_bytes))


def before_damage(data: Any) -> tuple[list[Member], str]:
    found: list[Member] = []
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        for member in members(stream, lambda name: True):
            found.append(member)
    except DamagedArchive as e:
        return found, str(e)
    return found, ""


@given(FILES, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@settings(deadline=None)
def test_every_file_comes_whole_and_in_order(files: list[tuple[str, bytes]], kind: int) -> None:
    want = [(n, None, "path-escape") if ".." in n.split("/") else (n, d, "") for n, d in files]
    assert [(m.name, m.data, m.fault) for m in read(tar_of(files, kind))] == want  # type: ignore[arg-type]


@given(st.lists(st.binary(min_size=1, max_size=1500), min_size=1, max_size=6), st.data())
@settings(deadline=None)
def test_a_cut_archive_gives_the_members_before_the_cut(contents: list[bytes], data: st.DataObject) -> None:
    whole = tar_of([(f"{n}.bin", c) for n, c in enumerate(contents)])
    ends = list(itertools.accumulate(512 + -(-len(c) // 512) * 512 for c in contents))
    cut = data.draw(st.integers(0, ends[-1]))
    found, error = before_damage(whole[:cut])
    assert [m.data for m in found] == contents[: sum(end <= cut for end in ends)]
    assert error, "no end mark was read"


@given(FILES, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=200)
def test_whatever_the_bytes_are_it_ends_and_raises_nothing_else(files: Any, noise: random.Random) -> None:
    data = bytearray(tar_of(files))
    for _ in range(noise.randint(1, 20)):
        data[noise.randrange(len(data))] = noise.randrange(256)
    before_damage(bytes(data))


def test_a_damaged_header_in_the_middle_is_no_end() -> None:
    data = bytearray(tar_of([("a", b"1"), ("b", b"2"), ("c", b"3")]))
    data[1024] ^= 0xFF
    found, error = before_damage(bytes(data))
    assert [m.name for m in found] == ["a"]
    assert "header" in error


def test_archives_behind_one_another_are_one() -> None:
    assert [m.name for m in read(tar_of([("a", b"1")]) + tar_of([("b", b"2")]))] == ["a", "b"]


@pytest.mark.parametrize(
    ("member", "fault"),
    [
        ("/etc/passwd", "path-escape"),
        ("a/../../b", "path-escape"),
        ("./../b", "path-escape"),
        ("large", "too-large"),
        (tarfile.SYMTYPE, "bad-member"),
        (tarfile.LNKTYPE, "bad-member"),
        (tarfile.CHRTYPE, "bad-member"),
        (tarfile.FIFOTYPE, "bad-member"),
    ],
)
def test_hostile_members_are_named_and_passed_over(member: Any, fault: str) -> None:
    info = tarfile.TarInfo(member if isinstance(member, str) else "odd")
    if isinstance(member, bytes):
        info.type, info.linkname = member, "/etc/passwd"
    data = tar_of([("a", b"1"), (info, b"x" * 3000), ("b", b"2")])
    assert [(m.fault, m.data) for m in read(data, max_bytes=2999)] == [("", b"1"), (fault, None), ("", b"2")]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_huge_extended_header_is_not_read(kind: int) -> None:
    info = tarfile.TarInfo("n" * (MAX_HEADER_BYTES + 1))
    one, two, three = read(tar_of([("a", b"1"), (info, b"x"), ("b", b"2")], kind))
    assert (one.name, two.fault, three.name) == ("a", "too-large", "b")


def test_folders_are_passed_over_and_dots_taken_off() -> None:
    folder = tarfile.TarInfo("./train")
    folder.type = tarfile.DIRTYPE
    assert [m.name for m in read(tar_of([(folder, b""), ("./train/a", b"1")]))] == ["train/a"]


def test_declared_sizes_are_not_believed() -> None:
    info = tarfile.TarInfo("a")
    info.size = 1 << 40
    header = info.tobuf(tarfile.GNU_FORMAT)
    for limit in (1 << 20, 1 << 50):
        with pytest.raises(DamagedArchive):
            list(members(io.BytesIO(header + b"short"), lambda name: True, limit))


def test_old_sparse_files_cost_themselves() -> None:
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 5
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    data = bytes(header) + bytes(512) + b"12345".ljust(512, b"\0") + tar_of([("b", b"2")])
    assert [(m.name, m.fault) for m in read(data)] == [("a", "bad-member"), ("b", "")]


def test_a_cut_gzip_stream_is_damage() -> None:
    noise = random.Random(0)
    packed = gzip.compress(tar_of([(f"{n}", noise.randbytes(5000)) for n in range(20)]))
    with gzip.open(io.BytesIO(packed[:60_000])) as stream:
        found, error = before_damage(stream)
    assert [m.name for m in found] == [str(n) for n in range(len(found))]
    assert 8 < len(found) < 20
    assert "end" in error
