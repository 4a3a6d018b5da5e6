"""What a retry adds to a finished step, and how the two read together."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from infra.storage import Storage
from infra.store.commit import commit_part, commit_step, load_own_manifest, load_step
from infra.store.manifest import PartManifest, Rows, StepManifest


def part(name: str, rows: Rows) -> PartManifest:
    return PartManifest(step="scan", fingerprint="f", part=name, source="a", rows=rows)


def test_a_rescued_row_counts_once(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    commit_part(store, part("a-000000", Rows(entered=10, out=7, quarantined={"missing-image": 2, "bad-json": 1})), {})
    base = commit_step(
        store, StepManifest(step="scan", fingerprint="f", facts={"pictures": 7, "kept": "x"}), ["a-000000"]
    )
    assert load_step(store) == base
    commit_part(store, part("a-000000.r1", Rows(entered=2, out=1, quarantined={"missing-image": 1})), {})
    added = StepManifest(
        step="scan", fingerprint="f", retry=1, retried={"a": {"missing-image": 2}}, facts={"pictures": 8}
    )
    commit_step(store, added, ["a-000000.r1"])
    whole = load_step(store)
    assert whole is not None
    assert whole.rows["a"] == Rows(entered=10, out=8, quarantined={"missing-image": 1, "bad-json": 1})
    assert whole.rows["a"].balance == 0
    assert whole.parts == ["a-000000", "a-000000.r1"]
    assert whole.facts == {"pictures": 8, "kept": "x"}
    assert whole.parts_digest != base.parts_digest
    assert load_own_manifest(store, 0) == base, "what was committed first stays as it is"
    again = load_own_manifest(store, 1)
    assert again is not None
    assert again.parts == ["a-000000.r1"]


def test_retries_are_read_in_their_order(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    commit_step(store, StepManifest(step="scan", fingerprint="f"), [])
    for number in (10, 2, 1):
        commit_part(store, part(f"a-000000.r{number}", Rows()), {})
        commit_step(store, StepManifest(step="scan", fingerprint="f", retry=number), [f"a-000000.r{number}"])
    whole = load_step(store)
    assert whole is not None
    assert whole.parts == ["a-000000.r1", "a-000000.r2", "a-000000.r10"]
    assert whole.retry == 10


counts = st.dictionaries(st.sampled_from(["missing-image", "read-error", "bad-json"]), st.integers(1, 9), max_size=3)


@given(out=st.integers(0, 20), quarantined=counts, rescued=st.floats(0, 1), again=st.data())
def test_the_ledger_closes_whatever_a_retry_finds(
    out: int, quarantined: dict[str, int], rescued: float, again: st.DataObject
) -> None:
    base = StepManifest(
        step="scan",
        fingerprint="f",
        rows={"a": Rows(entered=out + sum(quarantined.values()), out=out, quarantined=quarantined)},
    )
    tried = {k: again.draw(st.integers(0, n)) for k, n in quarantined.items()}
    total = sum(tried.values())
    good = int(rescued * total)
    rows = Rows(entered=total, out=good, quarantined={"read-error": total - good} if total > good else {})
    whole = base.with_retry(StepManifest(step="scan", fingerprint="f", rows={"a": rows}, retried={"a": tried}, retry=1))
    assert whole.rows["a"].balance == 0
    assert whole.rows["a"].entered == base.rows["a"].entered
    assert whole.rows["a"].out == out + good
    assert all(n > 0 for n in whole.rows["a"].quarantined.values())
