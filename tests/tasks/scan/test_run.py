"""Steps scan and select together, and what later steps read of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import RecipeError, SourceError
from infra.store.commit import load_part, load_step
from infra.store.manifest import StepManifest
from infra.store.samples import QUARANTINE
from infra.store.tables import read_table
from tasks.context import StepContext
from tasks.scan import run as scan
from tasks.scan import select
from tasks.scan.items import dump_items, listed_items, retry_listing
from tasks.scan.selected import first_row, selected, selected_rows, work_items
from tasks.scan.tables import SCAN, SELECT
from tasks.sources.base import BadRow, BaseSource, EndOfRange, RawImage, RawSample, Segment, WorkItem, sample_id
from tests.tasks.file_sources import Jsonl, MakeContext, Pictures, picture_bytes

PAIRS = {"name": "photos", "type": "pairs", "kind": "pairs", "path": "list.jsonl", "licence": "CC0"}
TEXTS = {"name": "prose", "type": "text", "kind": "text", "path": "prose.jsonl"}


def own(reader: str, kind: str = "text", **rest: Any) -> dict[str, Any]:
    """A source of one of this module's readers."""
    return {"name": "own", "type": f"{__name__}:{reader}", "kind": kind, **rest}


class OneItem(BaseSource):
    """Readers of these tests: everything in one work item."""

    def digest(self) -> str:
        return type(self).__name__

    def work_items(self, target: int) -> Iterator[WorkItem]:
        yield WorkItem(self.config.name, 0, {})


class OneKey(OneItem):
    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        for text in ("a", "b"):
            yield RawSample("k", "f", 1, segments=(Segment(text),))


class Gallery(OneItem):
    """Documents of three pictures each: one is missing for good, another until ``late.png`` is there."""

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        late = self.folder / "late.png"
        for number in range(3):
            images = (
                RawImage("gone.png", None),
                RawImage("here.png", picture_bytes(number), url=f"http://x/{number}"),
                RawImage("late.png", late.read_bytes() if late.exists() else None),
            )
            segments = (Segment(image=2), Segment("between"), Segment(image=1), Segment(image=0))
            yield RawSample(f"d{number}", "f", number + 1, segments=segments, images=images)


class Late(OneItem):
    """Pairs of which some cannot be read until a file is there; the last shows the first one's picture."""

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        ready = (self.folder / "ready").exists()
        for number, picture in enumerate((0, 1, 2, 3, 0)):
            lost = number in (1, 4) and not ready
            image = RawImage(f"{number}", None if lost else picture_bytes(picture), error="read-error")
            yield RawSample(f"p{number}", "f", number + 1, captions=(f"caption {number}",), images=(image,))


class Ids(OneItem):
    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        for number, tokens in enumerate((b"\1\0", b"\2\0", b"\1\0", b"")):
            yield RawSample(f"t{number}", "f", number + 1, tokens=tokens)


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


def scanned(context: StepContext, source: str) -> list[dict[str, Any]]:
    """Scan's rows of a source, with the true row numbers."""
    store, first = context.store("scan"), first_row(context)
    rows = []
    for item in work_items(context):
        if item.source == source:
            name = f"parts/{item.part}.parquet"
            found = read_table(store.get(name), SCAN, name).to_pylist()
            rows += [row | {"row": row["row"] + first.get(item.part, 1) - 1} for row in found]
    return rows


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
    first = first_row(mixed)
    found = [
        row | {"row": row["row"] + first.get(name.split(".")[0], 1) - 1}
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
    keys = [row["key"] for row in scanned(mixed, "photos") if row["row"] in (4, 41)]
    stays = min(keys, key=lambda k: sample_id("photos", k))
    assert len(keys) == 2
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
    part = mixed.store().path("parts/photos-000000.parquet")
    before = part.stat().st_mtime_ns
    mixed.store().delete("parts/photos-000001.json")
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


def test_a_source_that_changes_under_way_is_noticed(mixed: StepContext, jsonl: Jsonl) -> None:
    run_both(mixed)
    items = work_items(mixed)  # taken before, as a running step's are
    stores = {s: mixed.store(s) for s in ("scan", "select")}
    jsonl("prose.jsonl", [{"text": "x"}])
    assert {s: mixed.store(s).root for s in stores} == {s: v.root for s, v in stores.items()}
    with pytest.raises(SourceError, match=r"prose: .* samples of prose-000000 that were scanned are no longer there"):
        list(selected(mixed, next(i for i in items if i.source == "prose")))


def test_a_source_with_nothing_usable_says_why(make_context: MakeContext, jsonl: Jsonl) -> None:
    jsonl("prose.jsonl", [{"content": "the field has another name"}] * 3)
    with pytest.raises(SourceError, match=r"source prose: none of its 3 rows is usable \(3 missing-field\)"):
        scan.run(make_context("scan", [TEXTS]), workers=0)


def test_two_samples_of_one_key_are_refused(make_context: MakeContext) -> None:
    context = make_context("scan", [own("OneKey")])
    scan.run(context, workers=0)
    with pytest.raises(SourceError, match="source own: 1 samples have the key of another"):
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


def test_rows_are_true_wherever_a_sample_is_read_again(mixed: StepContext) -> None:
    run_both(mixed)
    assert [r["row"] for r in scanned(mixed, "photos")] == list(range(1, 47))
    kept = {row["key"]: row["row"] for row in scanned(mixed, "photos")}
    read = [raw for item in work_items(mixed) if item.source == "photos" for raw, _ in selected(mixed, item)]
    assert {raw.key: raw.row for raw in read} == {raw.key: kept[raw.key] for raw in read}
    assert max(raw.row for raw in read) > 8, "beyond the first work item"
    assert [f.name for f in finished(mixed).files] == ["items.jsonl", "rows.json"]


def test_a_step_goes_on_with_the_items_that_were_listed(mixed: StepContext, monkeypatch: pytest.MonkeyPatch) -> None:
    scan.run(mixed, workers=0)
    mixed.store().delete("manifest.json")
    monkeypatch.setattr(scan, "list_items", lambda *_: pytest.fail("listed again"))
    scan.run(mixed, workers=0)
    assert finished(mixed).rows["photos"].entered == 46


def test_documents_may_go_on_without_their_missing_pictures(make_context: MakeContext, tmp_path: Path) -> None:
    strict = make_context("scan", [own("Gallery", "interleaved")])
    with pytest.raises(SourceError, match="3 missing-image"):
        scan.run(strict, workers=0)
    context = make_context("scan", [own("Gallery", "interleaved", missing_images="drop")])
    run_both(context)
    facts = finished(context).facts["sources"]["own"]
    assert (facts["dropped_pictures"], facts["pictures"]) == (6, 3)
    (tmp_path / "late.png").write_bytes(picture_bytes(77))
    (item,) = work_items(context)
    for raw, row in selected(context, item):
        assert row.dropped == (0, 2), "as scan saw it, though one is there now"
        assert [s.image if s.text is None else s.text for s in raw.segments] == ["between", 0]
        assert [i.name for i in raw.images] == ["here.png"]
        assert [i.url for i in row.images] == [raw.images[0].url]


def test_tokens_pass_with_their_content_hash(make_context: MakeContext) -> None:
    context = make_context("scan", [own("Ids", "tokens")])
    run_both(context)
    assert finished(context).rows["own"].filtered == {"empty": 1}
    assert finished(as_step(context, "select")).rows["own"].duplicate == {"exact": 1}
    (item,) = work_items(context)
    assert sorted(raw.tokens for raw, _ in selected(context, item)) == [b"\1\0", b"\2\0"]


def test_a_retry_reads_its_keys_and_loses_against_what_was_there(make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context("scan", [own("Late", "pairs")])
    run_both(context)
    before = {s: as_step(context, s).store().get("parts/own-000000.json") for s in ("scan", "select")}
    assert finished(context).rows["own"].quarantined == {"read-error": 2}
    (tmp_path / "ready").touch()
    (item,) = listed_items(context.store("scan"))
    again = WorkItem("own", 0, {**item.locator, "keys": ["p1", "p4"], "again": ["p2"]}, retry=1)
    context.store().put(retry_listing(1), dump_items([again]))
    retry = {s: StepContext(context.recipe, context.root, s, retry=1) for s in ("scan", "select", "encode")}
    scan.run(retry["scan"], workers=0)
    select.run(retry["select"])
    assert [i.part for i in work_items(context)] == ["own-000000", "own-000000.r1"]
    assert [i.part for i in work_items(retry["encode"])] == ["own-000000.r1"]
    for step, data in before.items():
        assert as_step(context, step).store().get("parts/own-000000.json") == data
    total = finished(context)
    assert (total.rows["own"].entered, total.rows["own"].out, total.rows["own"].quarantined) == (5, 5, {})
    assert total.facts["sources"]["own"]["pictures"] == 5
    store = as_step(context, "select").store()
    rows = read_table(store.get("parts/own-000000.r1.parquet"), SELECT, "r1").to_pylist()
    fates = {row["sample_id"]: row["reason"] for row in rows}
    assert fates == {sample_id("own", "p1"): "", sample_id("own", "p4"): "exact"}, "p0 was there first, whatever its id"
    (added,) = work_items(retry["encode"])
    found = [(raw.key, row.images[0].width) for raw, row in selected(retry["encode"], added)]
    assert found == [("p1", 16), ("p2", 16)], "with what encode lost, as it was selected before"


def test_a_fresh_run_with_a_retry_listed_makes_the_same_decisions(make_context: MakeContext, tmp_path: Path) -> None:
    """What an earlier generation was told must not depend on a later one being there."""
    context = make_context("scan", [own("Late", "pairs")])
    scan.run(context, workers=0)
    (tmp_path / "ready").touch()
    (item,) = listed_items(context.store("scan"))
    again = WorkItem("own", 0, {**item.locator, "keys": ["p1", "p4"]}, retry=1)
    context.store().put(retry_listing(1), dump_items([again]))
    scan.run(StepContext(context.recipe, context.root, "scan", retry=1), workers=0)
    select.run(as_step(context, "select"))
    manifest = finished(as_step(context, "select"))
    assert manifest.parts == ["own-000000", "own-000000.r1"]
    assert (manifest.rows["own"].out, manifest.rows["own"].duplicate) == (4, {"exact": 1})


def test_near_duplicates_are_dropped_where_both_sections_ask_for_it(make_context: MakeContext, jsonl: Jsonl) -> None:
    words = [f"word{n}" for n in range(2000)]
    texts = [" ".join(random.Random(seed).choices(words, k=200)) for seed in range(4)]
    jsonl("prose.jsonl", [{"text": t} for t in texts] + [{"text": f"{texts[0]} and more"}])
    rows = {}
    for wanted in (False, True):
        context = make_context(
            "scan",
            [TEXTS],
            workdir=f"w{wanted}",
            scan={"near_duplicates": True, "item_samples": 2},
            select={"near_duplicates": wanted},
        )
        run_both(context)
        rows[wanted] = finished(as_step(context, "select")).rows["prose"]
    assert (rows[False].out, rows[False].duplicate) == (5, {})
    assert (rows[True].out, rows[True].duplicate) == (4, {"near": 1})


def test_every_option_is_counted_in_ledger_and_facts(
    make_context: MakeContext, jsonl: Jsonl, pictures: Pictures, tmp_path: Path
) -> None:
    names = pictures(6)
    (tmp_path / "w.txt").write_text("1")
    (tmp_path / "exam.txt").write_text("the train leaves at noon and arrives where two rivers meet\n")
    captions = [
        "A red square on a wall",
        "Ein roter Kreis auf weißem Grund",
        "He said: the train leaves at noon and arrives where two rivers meet!",
        "THIS IS FAR TOO LOUD FOR ALL OF THE PEOPLE HERE",
        "a quiet green thing in the garden",
        "The picture that breaks a scorer, oh no!",
    ]
    jsonl("list.jsonl", [{"file": n, "caption": c} for n, c in zip(names, captions, strict=True)])
    options = {
        "languages": ["en"],
        "min_language_score": 0,
        "faces": True,
        "benchmarks": [{"name": "exam", "path": "exam.txt"}],
        "filters": [{"type": "tests.tasks.scan.test_filters:NoShouting", "options": {"most": 0.5}}],
        "scorers": [{"name": "bright", "type": "tests.tasks.scan.test_scorers:Brightness", "weights": "w.txt"}],
        "item_samples": 2,
    }
    context = make_context("scan", [PAIRS], scan=options)
    run_both(context)
    rows = finished(context).rows["photos"]
    assert rows.filtered == {"benchmark-exam": 1, "language": 1, "shouting": 1}
    assert rows.quarantined == {"plugin-error": 1}
    assert finished(context).facts["sources"]["photos"]["languages"] == [["en", 2]]
    assert finished(context).facts["sources"]["photos"]["faces"] == 0
    (one, other) = (row for item in work_items(context) for _, row in selected(context, item))
    assert one.language == other.language == "en"
    assert [name for name, _ in one.scores] == ["bright"]
    assert 0 < one.scores[0][1] < 1


def test_a_plug_in_that_is_not_there_stops_the_step_before_any_work(make_context: MakeContext, jsonl: Jsonl) -> None:
    jsonl("prose.jsonl", [{"text": "a"}])
    context = make_context("scan", [TEXTS], scan={"filters": [{"type": "no.such:Filter"}]})
    with pytest.raises(RecipeError, match=r"scan\.filters\.0: 'no\.such:Filter' cannot be imported"):
        scan.run(context, workers=0)
    assert not context.store().exists("items.jsonl")
