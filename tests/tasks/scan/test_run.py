"""Steps scan and select together, and what later steps read of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import SourceError
from infra.store.commit import load_part, load_step
from infra.store.manifest import StepManifest
from infra.store.samples import QUARANTINE
from infra.store.tables import read_table
from tasks.context import StepContext
from tasks.scan import run as scan
from tasks.scan import select
from tasks.scan.config import SelectConfig
from tasks.scan.select import EXACT, KEEP, PERCEPTUAL, REMOVED, Candidates, choose, read_removal_list
from tasks.scan.selected import selected, selected_rows, work_items
from tasks.scan.tables import SCAN
from tasks.sources.base import sample_id
from tests.tasks.file_sources import Jsonl, MakeContext, Pictures

PAIRS = {"name": "photos", "type": "pairs", "kind": "pairs", "path": "list.jsonl", "licence": "CC0"}
TEXTS = {"name": "prose", "type": "text", "kind": "text", "path": "prose.jsonl"}


def as_step(context: StepContext, step: str) -> StepContext:
    return StepContext(context.recipe, context.root, step)


def finished(context: StepContext) -> StepManifest:
    manifest = load_step(context.store())
    assert manifest is not None
    return manifest


def run_both(context: StepContext) -> None:
    scan.run(context, workers=0)
    select.run(as_step(context, "select"))


def all_selected(context: StepContext) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in work_items(context):
        found.setdefault(item.source, []).extend(raw.key for raw, _ in selected(context, item))
    return found


@pytest.fixture
def mixed(make_context: MakeContext, jsonl: Jsonl, pictures: Pictures, tmp_path: Path) -> StepContext:
    """Two sources with one of every fate."""
    names = pictures(40)
    (tmp_path / "again.png").write_bytes((tmp_path / names[3]).read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    rows: list[Any] = [{"file": n, "captions": [f"name of {n}", "x"]} for n in names]
    rows += [{"file": "again.png", "caption": "the same picture"}, {"file": "broken.png", "caption": "x"}]
    rows += [{"file": "gone.png", "caption": "x"}, {"file": names[0]}, "{", {"file": "../../x", "caption": "x"}]
    jsonl("list.jsonl", rows)
    jsonl("prose.jsonl", [{"text": f"text number {n % 25}", "licence": "PD"} for n in range(30)] + [{"text": "short"}])
    config = {"item_samples": 8, "held_out": 0.2, "min_text_chars": 6}
    return make_context("scan", [PAIRS, TEXTS], scan=config)


def test_the_ledger_accounts_for_every_row(mixed: StepContext) -> None:
    run_both(mixed)
    rows = finished(mixed).rows
    assert rows["photos"].model_dump(by_alias=True) == {
        "in": 46,
        "out": 41,
        "filtered": {"empty": 1},
        "duplicate": {},
        "quarantined": {"bad-json": 1, "corrupt": 1, "missing-image": 1, "path-escape": 1},
        "removed": {},
    }
    assert rows["prose"].filtered == {"min-text-chars": 1}
    chosen = finished(as_step(mixed, "select")).rows
    assert (chosen["photos"].entered, chosen["photos"].out, chosen["photos"].duplicate) == (41, 40, {"exact": 1})
    assert (chosen["prose"].entered, chosen["prose"].out, chosen["prose"].duplicate) == (30, 25, {"exact": 5})
    assert all(r.balance == 0 for r in (*rows.values(), *chosen.values()))


def test_the_quarantine_names_file_row_class_and_message(mixed: StepContext) -> None:
    scan.run(mixed, workers=0)
    store = mixed.store()
    found = [
        row
        for name in store.list("parts", ".quarantine.parquet")
        for row in read_table(store.get(f"parts/{name}"), QUARANTINE, name).to_pylist()
    ]
    assert [(r["source"], r["file"], r["row"], r["error"]) for r in found] == [
        ("photos", "list.jsonl", 42, "corrupt"),
        ("photos", "list.jsonl", 43, "missing-image"),
        ("photos", "list.jsonl", 45, "bad-json"),
        ("photos", "list.jsonl", 46, "path-escape"),
    ]
    assert all(r["message"] for r in found)


def test_selected_samples_are_those_that_were_kept_with_what_scan_knows(mixed: StepContext) -> None:
    run_both(mixed)
    pairs = [p for item in work_items(mixed) if item.source == "photos" for p in selected(mixed, item)]
    assert len(pairs) == 40
    for raw, row in pairs:
        assert row.sample_id == sample_id("photos", raw.key)
        assert row.licence == "CC0"
        assert [(i.width, i.height) for i in row.images] == [(16, 16)]
        assert raw.images[0].data is not None
    assert 1 <= sum(row.held_out for _, row in pairs) <= 20
    licences = {row.licence for item in work_items(mixed) if item.source == "prose" for _, row in selected(mixed, item)}
    assert licences == {"PD"}, "a sample's own licence goes before its source's"
    for item in work_items(mixed):
        assert list(selected_rows(mixed, item.part)) == [row.sample_id for _, row in selected(mixed, item)]


def test_of_equal_samples_the_lowest_id_stays(mixed: StepContext) -> None:
    run_both(mixed)
    keys = ["list.jsonl#4", "list.jsonl#41"]
    stays = min(keys, key=lambda k: sample_id("photos", k))
    assert [k for k in all_selected(mixed)["photos"] if k in keys] == [stays]


def test_the_same_sources_give_the_same_bytes_and_finished_parts_are_left_alone(
    mixed: StepContext, tmp_path: Path
) -> None:
    run_both(mixed)
    other = StepContext(mixed.recipe, str(tmp_path / "other"), "scan")
    run_both(other)
    for step in ("scan", "select"):
        a, b = as_step(mixed, step).store(), as_step(other, step).store()
        names = [f"parts/{n}" for n in a.list("parts")]
        assert [a.get(n) for n in names] == [b.get(n) for n in names]
        assert a.get("manifest.json") == b.get("manifest.json")
    part = mixed.store().path("parts/photos-00000.parquet")
    before = part.stat().st_mtime_ns
    mixed.store().delete("parts/photos-00001.json")
    mixed.store().delete("manifest.json")
    scan.run(mixed, workers=0)
    assert part.stat().st_mtime_ns == before
    assert mixed.store().get("manifest.json") == other.store().get("manifest.json")


def test_work_items_do_not_change_what_is_selected_or_held_out(mixed: StepContext, make_context: MakeContext) -> None:
    run_both(mixed)
    config = {"item_samples": 1000, "held_out": 0.2, "min_text_chars": 6}
    whole = make_context("scan", [PAIRS, TEXTS], scan=config)
    run_both(whole)
    assert len(work_items(whole)) == 2 < len(work_items(mixed))
    assert all_selected(whole) == all_selected(mixed)


def test_facts_sum_up_what_was_kept(mixed: StepContext) -> None:
    scan.run(mixed, workers=0)
    facts = finished(mixed).facts["sources"]
    assert facts["photos"]["pictures"] == 41
    table = [
        row
        for part in finished(mixed).parts
        for row in read_table(mixed.store().get(f"parts/{part}.parquet"), SCAN, part).to_pylist()
        if load_part(mixed.store(), part).source == "photos" and row["state"] == "kept"
    ]
    assert facts["photos"]["held_out"] == sum(r["held_out"] for r in table) > 0
    assert facts["photos"]["text_bytes"] == sum(r["text_bytes"] for r in table)


def test_the_removal_list_goes_first(mixed: StepContext, make_context: MakeContext, tmp_path: Path) -> None:
    """Of two equal samples the removed one must not be the one that would have stayed."""
    stays = min(sample_id("photos", k) for k in ("list.jsonl#4", "list.jsonl#41"))
    (tmp_path / "gone.txt").write_text(f"# asked for by mail\n\n{stays.hex()}  # a picture\n", encoding="utf-8")
    context = make_context(
        "scan", [PAIRS, TEXTS], scan=mixed.recipe.scan.model_dump(), select={"removal_list": "gone.txt"}
    )
    run_both(context)
    rows = finished(as_step(context, "select")).rows["photos"]
    assert (rows.out, rows.removed, rows.duplicate) == (40, {"gone.txt": 1}, {})


def test_a_bad_removal_list_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for bad in ("xyz", "00ff"):
        path.write_text(f"{'0' * 32}\n{bad}\n", encoding="utf-8")
        with pytest.raises(SourceError, match=f"list.txt:2: '{bad}' is not a sample id"):
            read_removal_list(path)
    path.write_text(f"{'0' * 32}\n{'f' * 32}\n", encoding="utf-8")
    assert read_removal_list(path).tobytes() == bytes(16) + b"\xff" * 16


IDS = st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=30)


@given(IDS, st.data())
def test_choosing_keeps_the_lowest_of_each_group(ids: list[bytes], data: st.DataObject) -> None:
    n = len(ids)
    contents = data.draw(st.lists(st.sampled_from([bytes(32), b"\1" * 32, b"\0" * 31 + b"\1"]), min_size=n, max_size=n))
    hashes = data.draw(st.lists(st.sampled_from([0, 1, 2**64 - 1]), min_size=n, max_size=n))
    removed = data.draw(st.sets(st.sampled_from(ids))) if ids else set()
    candidates = Candidates(
        np.array(ids, "S16"), np.array(contents, "S32"), np.array(hashes, np.uint64) if ids else None
    )
    config = SelectConfig(perceptual_duplicates=True)
    fate = choose(candidates, config, np.array(sorted(removed), "S16"))
    expected = {}
    seen: set[tuple[str, object]] = set()
    order = sorted(range(n), key=lambda i: ids[i])
    for i in order:
        if ids[i] in removed:
            expected[i] = REMOVED
        elif ("content", contents[i]) in seen:
            expected[i] = EXACT
        else:
            seen.add(("content", contents[i]))
            expected[i] = KEEP
    for i in order:
        if expected[i] == KEEP:
            if ("phash", hashes[i]) in seen:
                expected[i] = PERCEPTUAL
            seen.add(("phash", hashes[i]))
    assert fate.tolist() == [expected[i] for i in range(n)]
    off = choose(candidates, SelectConfig(exact_duplicates=False), np.array([], "S16"))
    assert not off.any()


def test_a_source_that_changes_under_way_is_noticed(mixed: StepContext, jsonl: Jsonl) -> None:
    run_both(mixed)
    items = work_items(mixed)  # taken before, as a running step's are
    stores = {s: mixed.store(s) for s in ("scan", "select")}
    jsonl("prose.jsonl", [{"text": "x"}])
    assert {s: mixed.store(s).root for s in stores} == {s: v.root for s, v in stores.items()}
    with pytest.raises(SourceError, match=r"prose: .* samples of prose-00000 that were scanned are no longer there"):
        list(selected(mixed, next(i for i in items if i.source == "prose")))


def test_a_source_with_nothing_usable_says_why(make_context: MakeContext, jsonl: Jsonl) -> None:
    jsonl("prose.jsonl", [{"content": "the field has another name"}] * 3)
    with pytest.raises(SourceError, match=r"source prose: none of its 3 rows is usable \(3 missing-field\)"):
        scan.run(make_context("scan", [TEXTS]), workers=0)


def test_two_samples_of_one_key_are_refused(
    make_context: MakeContext, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.sources import text

    jsonl("prose.jsonl", [{"text": "a"}, {"text": "b"}])
    sample = text.TextFiles._sample
    monkeypatch.setattr(text.TextFiles, "_sample", lambda self, file, row, *rest: sample(self, file, 1, *rest))
    context = make_context("scan", [TEXTS])
    scan.run(context, workers=0)
    with pytest.raises(SourceError, match="1 samples have the key of another"):
        select.run(as_step(context, "select"))


def test_perceptual_duplicates_only_when_asked_for(
    make_context: MakeContext, jsonl: Jsonl, pictures: Pictures, tmp_path: Path
) -> None:
    import io

    from PIL import Image

    (name,) = pictures(1)
    sink = io.BytesIO()
    Image.open(tmp_path / name).resize((32, 32), Image.Resampling.NEAREST).save(sink, "PNG")
    (tmp_path / "larger.png").write_bytes(sink.getvalue())
    jsonl("list.jsonl", [{"file": name, "caption": "x"}, {"file": "larger.png", "caption": "y"}])
    for wanted, kept in ((False, 2), (True, 1)):
        context = make_context("scan", [PAIRS], workdir=f"w{wanted}", select={"perceptual_duplicates": wanted})
        run_both(context)
        rows = finished(as_step(context, "select")).rows["photos"]
        assert (rows.out, rows.duplicate) == (kept, {"perceptual": 1} if wanted else {})
