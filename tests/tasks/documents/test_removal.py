from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import SourceError
from infra.store.tables import read_table
from tasks.context import StepContext
from tasks.documents import removal
from tasks.documents import run as documents
from tasks.documents.config import RemovalConfig
from tasks.documents.removal import Removal
from tasks.scan.tables import KEPT, SCAN
from tests.tasks import data_run

ID, SHA = bytes(range(16)), bytes(range(32, 64))


def load(folder: Path, text: str, name: str = "gone.txt") -> Removal:
    (folder / name).write_text(text, encoding="utf-8")
    return Removal.load(RemovalConfig(list=name), str(folder))


def test_ids_pictures_and_urls_are_covered_and_nothing_else(tmp_path: Path) -> None:
    text = f"""# asked for by mail
    {ID.hex().upper()}   # a text

    {SHA.hex()}
    https://example.org/a.png#here  # a picture
    https://example.org/t.png	# after a tab
    http://example.org/b c.png
    """
    found = load(tmp_path, text)
    assert len(found) == 5
    assert found.covers(bytes(16), [(bytes(32), "https://example.org/t.png")])
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


def test_what_equals_a_listed_sample_goes_with_it(tmp_path: Path) -> None:
    """A twin that select dropped may be the one whose id or URL somebody knows."""
    run = data_run.make(tmp_path, "tokenize")
    before = run.context("tokenize").manifest("tokenize").rows["photos"]
    table = pa.concat_tables(
        read_table(run.context("scan").store().get(f"parts/{p}.parquet"), SCAN, p)
        for p in run.context("scan").manifest("scan").parts
        if p.startswith("photos")
    )
    kept = [r for r in table.to_pylist() if r["state"] == KEPT]
    (first, second) = next([a, b] for a in kept for b in kept if a["content"] == b["content"] and a["row"] < b["row"])
    encode = sorted((run.workdir / "encode").iterdir())
    for listed in (first, second):
        (tmp_path / "gone.txt").write_text(f"{listed['sample_id'].hex()}\n{'0' * 32}\n")
        recipe = run.recipe.model_copy(update={"removal": RemovalConfig(list=str(tmp_path / "gone.txt"))})
        context = StepContext(recipe, str(run.workdir), "tokenize")
        documents.run(context, workers=0)
        done = context.manifest("tokenize")
        assert done.rows["photos"].removed == {"gone.txt": 1}
        assert done.rows["photos"].out == before.out - 1
        named = [file.name for file in done.files]
        assert named == ["removed.contents"], "verify knows it, and clean leaves it"
        assert done.facts["removal"] == {"entries": 2, "entries_that_name_nothing": 1}
    assert sorted((run.workdir / "encode").iterdir()) == encode, "nothing is encoded again"
