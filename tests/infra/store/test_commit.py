from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import commit_part, commit_step, done_parts, load_part, load_step
from infra.store.manifest import PartManifest, Rows, StepManifest


def part(name: str = "a-00000", **rows: int) -> PartManifest:
    return PartManifest(step="scan", fingerprint="f", part=name, source="a", rows=Rows(**rows))


def test_a_part_is_done_when_its_manifest_is_there(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.put("parts/a-00000.parquet", b"data of a killed writer")
    assert done_parts(store) == set()
    commit_part(store, part(entered=1, out=1), {"a-00000.parquet": b"data"})
    assert done_parts(store) == {"a-00000"}
    assert load_part(store, "a-00000").files[0].bytes == 4


def test_an_open_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="open by 1"):
        commit_part(Storage(tmp_path), part(entered=2, out=1), {})
    assert done_parts(Storage(tmp_path)) == set()


def test_the_first_manifest_wins(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    commit_part(store, part(entered=1, out=1), {})
    won = commit_part(store, part(entered=2, out=2), {})
    assert won.rows.entered == 1


def test_a_step_sums_its_parts(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    one = part(entered=3, out=2).model_copy(
        update={"rows": Rows(entered=3, out=2, filtered={"x": 1}), "tokens": {"text": 5}}
    )
    two = part("a-00001", entered=1, out=1).model_copy(update={"tokens": {"text": 2, "image": 9}})
    for p in (one, two):
        commit_part(store, p, {})
    assert load_step(store) is None
    step = commit_step(store, StepManifest(step="scan", fingerprint="f"), ["a-00000", "a-00001"])
    assert step.rows["a"] == Rows(entered=4, out=3, filtered={"x": 1})
    assert step.tokens == {"text": 7, "image": 9}
    assert load_step(store) == step


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.put("manifest.json", b'{"version": 2}')
    with pytest.raises(StoreError, match="version 2"):
        load_step(store)


def test_a_torn_manifest_is_named(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    store.put("manifest.json", b'{"versi')
    with pytest.raises(StoreError, match="manifest.json: not a manifest"):
        load_step(store)


counts = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 9))


@given(counts, counts, counts, counts, st.integers(0, 9), st.integers(-2, 2))
def test_the_balance_counts_every_fate(
    f: dict[str, int], d: dict[str, int], q: dict[str, int], r: dict[str, int], out: int, off: int
) -> None:
    total = out + sum(sum(x.values()) for x in (f, d, q, r))
    rows = Rows(entered=total + off, out=out, filtered=f, duplicate=d, quarantined=q, removed=r)
    assert rows.balance == off
    assert (rows + rows).balance == 2 * off
    assert Rows.model_validate(rows.model_dump(by_alias=True)) == rows
