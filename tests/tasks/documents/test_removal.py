from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import SourceError
from tasks.documents import removal
from tasks.documents.config import RemovalConfig
from tasks.documents.removal import Removal

ID, SHA = bytes(range(16)), bytes(range(32, 64))


def load(folder: Path, text: str, name: str = "gone.txt") -> Removal:
    (folder / name).write_text(text, encoding="utf-8")
    return Removal.load(RemovalConfig(list=name), str(folder))


def test_ids_pictures_and_urls_are_covered_and_nothing_else(tmp_path: Path) -> None:
    text = f"""# asked for by mail
    {ID.hex().upper()}   # a text

    {SHA.hex()}
    https://example.org/a.png#here  # a picture
    http://example.org/b c.png
    """
    found = load(tmp_path, text)
    assert len(found) == 4
    assert found.covers(ID)
    other = bytes(16)
    assert not found.covers(other)
    assert found.covers(other, [(bytes(32), ""), (SHA, "")])
    assert found.covers(other, [(bytes(32), "https://example.org/a.png#here")])
    assert not found.covers(other, [(bytes(32), "https://example.org/a.png")])
    assert not found.covers(other, [(bytes(32), ""), (SHA[::-1], "https://example.org/c.png")])
    assert found.covers(other, [(bytes(32), "http://example.org/b c.png")])
    assert found.digest == hashlib.sha256((tmp_path / "gone.txt").read_bytes()).hexdigest()


def test_no_list_covers_nothing() -> None:
    assert Removal.load(RemovalConfig()).digest == ""
    assert not Removal.load(RemovalConfig()).covers(ID, [(SHA, "http://x")])


@pytest.mark.parametrize("bad", ["xyz", "00ff", f"{'0' * 31}g", "0" * 31 + " 0", "ftp://example.org/a", f"{'0' * 65}"])
@pytest.mark.parametrize("before", [f"{'0' * 32}\n", "# note\n", f"{'0' * 64}\n", "http://a\n"])
def test_a_bad_line_is_named(tmp_path: Path, before: str, bad: str) -> None:
    with pytest.raises(SourceError, match=r"gone\.txt:2: .* is no entry of a removal list"):
        load(tmp_path, f"{before}{bad}\n")


def test_line_numbers_go_on_from_block_to_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_BLOCK", 100)
    lines = [f"{n:032x}" for n in range(50)]
    assert len(load(tmp_path, "\n".join(lines))) == 50
    with pytest.raises(SourceError, match=r"gone\.txt:51: 'oops'"):
        load(tmp_path, "\n".join([*lines, "oops"]))


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.txt: the removal list cannot be read .*set removal\.list"):
        Removal.load(RemovalConfig(list="none.txt"), str(tmp_path))


@given(
    st.sets(st.binary(min_size=16, max_size=16), max_size=20),
    st.sets(st.binary(min_size=32, max_size=32), max_size=20),
    st.binary(min_size=16, max_size=16),
)
def test_every_entry_is_found_also_with_zeros_at_its_end(ids: set[bytes], pictures: set[bytes], other: bytes) -> None:
    import tempfile

    ids |= {i[:-2] + b"\0\0" for i in ids}
    with tempfile.TemporaryDirectory() as folder:
        found = load(Path(folder), "\n".join(d.hex() for d in (*ids, *pictures)) + "\n")
    assert all(found.covers(i) for i in ids)
    assert all(found.covers(b"?" * 16, [(p, "")]) for p in pictures)
    assert found.covers(other) == (other in ids)
