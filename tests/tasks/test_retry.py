"""Quarantined samples whose fault has passed come into the stores, alone, and the ledger still closes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.storage import Storage
from infra.store.commit import PARTS, load_own_manifest, load_step
from infra.store.documents import DOCUMENTS
from infra.store.manifest import Rows, StepManifest
from infra.store.samples import SAMPLES
from infra.store.tables import read_table
from tasks.context import StepContext
from tasks.documents import run as documents
from tasks.encode import run as encode
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe
from tasks.retry import RetryPlan, is_transient, plan_retry
from tasks.scan import run as scan
from tasks.scan import select
from tasks.sources import pairs
from tasks.sources.files import UnusableRow
from tasks.steps import STORES
from tests.tasks import toy_run

NAMES = [f"{c}-{s}" for c in toy_run.COLOURS for s in toy_run.SHAPES]
LATE = {2, 9, 17}
BROKEN = 5


def picture(number: int) -> bytes:
    colour, shape = NAMES[number].split("-")
    return toy_run.picture(colour, shape)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Recipe, Path, Path]:
    """Recipe, folder of pictures and work folder; three pictures are not there yet, one is none."""
    images = tmp_path / "images"
    images.mkdir()
    lines = []
    for number, name in enumerate(NAMES):
        lines.append(json.dumps({"file": f"{name}.png", "caption": name}))
        if number not in LATE:
            (images / f"{name}.png").write_bytes(b"nonsense" if number == BROKEN else picture(number))
    (tmp_path / "list.jsonl").write_text("\n".join([*lines, "{not json"]) + "\n")
    raw = {
        **toy_run.RECIPE,
        "folder": str(tmp_path),
        "sources": [
            {"name": "photos", "type": "pairs", "kind": "pairs", "path": "list.jsonl", "options": {"images": "images"}}
        ],
        "scan": {"item_samples": 7, "held_out": 0},
        "mix": {
            "tokens": 1000,
            "sequence_length": toy_run.LENGTH,
            "stages": [{"name": "one", "share": 1, "weights": {"photos": 1}}],
        },
        "finetune_mix": {"sources": []},
        "evaluation": {},
    }
    workdir = tmp_path / "work"
    return toy_run.make(workdir, "tokenize", raw), images, workdir


def steps_of(recipe: Recipe, workdir: Path) -> dict[str, StepManifest]:
    found = {s: load_step(StepContext(recipe, str(workdir), s).store()) for s in STORES}
    return {step: manifest for step, manifest in found.items() if manifest is not None}


def go(recipe: Recipe, workdir: Path, plan: RetryPlan, only: tuple[str, ...] = STORES) -> None:
    runs: dict[str, Any] = {
        "scan": lambda c: scan.run(c, workers=0),
        "select": select.run,
        "encode": lambda c: encode.run(c, workers=0),
        "tokenize": lambda c: documents.run(c, workers=0),
    }
    for step in plan.steps:
        if step in only:
            runs[step](StepContext(recipe, str(workdir), step, "retry", plan.number))


def files(workdir: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for s in STORES for p in (workdir / s).rglob("*") if p.is_file()}


def rows_of(recipe: Recipe, workdir: Path, step: str, schema: Any) -> list[dict[str, Any]]:
    store = StepContext(recipe, str(workdir), step).store()
    parts = steps_of(recipe, workdir)[step].parts
    return [r for p in parts for r in read_table(store.get(f"{PARTS}/{p}.parquet"), schema, p).to_pylist()]


def test_only_what_a_later_moment_may_mend_is_tried() -> None:
    assert is_transient("missing-image")
    assert is_transient("read-error")
    assert not is_transient("bad-json")
    assert not is_transient("truncated"), "the same bytes will not decode tomorrow"


def test_a_late_picture_is_rescued_and_nothing_else_is_touched(made: tuple[Recipe, Path, Path]) -> None:
    recipe, images, workdir = made
    before, mix = steps_of(recipe, workdir), fingerprints(recipe, Storage(workdir))
    assert before["scan"].rows["photos"].quarantined == {"bad-json": 1, "missing-image": 3, "not-an-image": 1}
    kept = files(workdir)
    for number in (2, 9):
        (images / f"{NAMES[number]}.png").write_bytes(picture(number))

    plan = plan_retry(StepContext(recipe, str(workdir), "scan"))
    assert plan == RetryPlan(1, {"missing-image": 3}, False, STORES)
    go(recipe, workdir, plan)

    after = steps_of(recipe, workdir)
    entered, out = before["scan"].rows["photos"].entered, before["scan"].rows["photos"].out
    left = {"bad-json": 1, "missing-image": 1, "not-an-image": 1}
    assert after["scan"].rows["photos"] == Rows(entered=entered, out=out + 2, quarantined=left)
    for step in ("select", "encode", "tokenize"):
        assert after[step].rows["photos"] == Rows(entered=out + 2, out=out + 2), step
    assert after["tokenize"].facts["sources"]["photos"]["documents"] == out + 2
    now = files(workdir)
    assert {p: now[p] for p in kept} == kept, "what was committed is not written again"
    keys = [row["row"] for row in rows_of(recipe, workdir, "encode", SAMPLES)]
    assert sorted(keys) == [n + 1 for n in range(len(NAMES)) if n not in (BROKEN, 17)]
    assert len({row["sample_id"] for row in rows_of(recipe, workdir, "tokenize", DOCUMENTS)}) == out + 2
    new = fingerprints(recipe, Storage(workdir))
    assert new["mix"] != mix["mix"], "a mixture with more documents is another one"
    assert all(new[s] == mix[s] for s in (*STORES, "image-tokenizer", "text-tokenizer"))


def test_what_fails_again_stays_in_quarantine_and_may_be_tried_again(made: tuple[Recipe, Path, Path]) -> None:
    recipe, images, workdir = made
    before = steps_of(recipe, workdir)["scan"].rows["photos"]
    scanning = StepContext(recipe, str(workdir), "scan")
    plan = plan_retry(scanning)
    assert plan is not None
    go(recipe, workdir, plan)
    assert steps_of(recipe, workdir)["scan"].rows["photos"] == before
    for number in LATE:
        (images / f"{NAMES[number]}.png").write_bytes(picture(number))
    plan = plan_retry(scanning)
    assert plan == RetryPlan(2, {"missing-image": 3}, False, STORES)
    go(recipe, workdir, plan)
    assert steps_of(recipe, workdir)["tokenize"].rows["photos"].out == before.out + 3
    assert plan_retry(scanning) is None


def test_a_retry_that_was_killed_goes_on_with_its_own_list(made: tuple[Recipe, Path, Path]) -> None:
    recipe, images, workdir = made
    scanning = StepContext(recipe, str(workdir), "scan")
    first = plan_retry(scanning)
    assert first is not None
    go(recipe, workdir, first, only=("scan", "select"))
    (images / f"{NAMES[2]}.png").write_bytes(picture(2))
    again = plan_retry(scanning)
    assert again == RetryPlan(1, {"missing-image": 3}, True, STORES)
    go(recipe, workdir, again)
    whole = steps_of(recipe, workdir)["tokenize"]
    assert whole.retry == 1
    assert plan_retry(scanning) == RetryPlan(2, {"missing-image": 3}, False, STORES), "the list of 1 was read before"


def test_a_rescued_duplicate_loses_against_what_was_there(made: tuple[Recipe, Path, Path]) -> None:
    recipe, images, workdir = made
    (images / f"{NAMES[2]}.png").write_bytes(picture(0))
    plan = plan_retry(StepContext(recipe, str(workdir), "scan"))
    assert plan is not None
    go(recipe, workdir, plan)
    selected = steps_of(recipe, workdir)["select"].rows["photos"]
    assert selected.duplicate == {"exact": 1}
    assert sorted(r["row"] for r in rows_of(recipe, workdir, "encode", SAMPLES))[0] == 1, "the earlier one stays"


def test_what_encode_lost_is_tried_again(tmp_path: Path, made: tuple[Recipe, Path, Path]) -> None:
    """A picture that was there when it was scanned and not when it was encoded."""
    recipe, images, _ = made
    other = tmp_path / "other"
    raw = {**recipe.model_dump(mode="json")}
    toy_run.make(other, "image-tokenizer", raw)
    (images / f"{NAMES[0]}.png").rename(tmp_path / "aside.png")
    for step in ("encode", "text-tokenizer", "tokenize"):
        context = StepContext(recipe, str(other), step)
        {"encode": encode.run, "tokenize": documents.run}.get(step, lambda c, workers: toy_run.text_tokenizer.run(c))(
            context, workers=0
        )
    assert steps_of(recipe, other)["encode"].rows["photos"].quarantined == {"missing-image": 1}
    (tmp_path / "aside.png").rename(images / f"{NAMES[0]}.png")
    plan = plan_retry(StepContext(recipe, str(other), "scan"))
    assert plan == RetryPlan(1, {"missing-image": 4}, False, STORES)
    go(recipe, other, plan)
    encoded = steps_of(recipe, other)["encode"].rows["photos"]
    assert encoded.quarantined == {}
    assert encoded.balance == 0
    assert 1 in [r["row"] for r in rows_of(recipe, other, "encode", SAMPLES)]
    assert steps_of(recipe, other)["tokenize"].rows["photos"].out == encoded.out


def test_a_store_that_is_not_finished_reads_it_with_everything_else(made: tuple[Recipe, Path, Path]) -> None:
    recipe, images, workdir = made
    prints = fingerprints(recipe, Storage(workdir))
    (workdir / folder_of("tokenize", prints["tokenize"]) / "manifest.json").unlink()
    (images / f"{NAMES[2]}.png").write_bytes(picture(2))
    plan = plan_retry(StepContext(recipe, str(workdir), "scan"))
    assert plan is not None
    assert plan.steps == ("scan", "select", "encode")
    go(recipe, workdir, plan)
    documents.run(StepContext(recipe, str(workdir), "tokenize"), workers=0)
    done = load_own_manifest(StepContext(recipe, str(workdir), "tokenize").store(), 0)
    assert done is not None
    assert done.rows["photos"].out == steps_of(recipe, workdir)["encode"].rows["photos"].out
    assert plan_retry(StepContext(recipe, str(workdir), "scan")) == RetryPlan(2, {"missing-image": 2}, False, STORES)


def test_a_row_that_was_no_sample_comes_back_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caption file that could not be read has no sample's key in quarantine; the sample then has its own."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        (images / f"{number:02}.png").write_bytes(picture(number))
        (images / f"{number:02}.txt").write_text(NAMES[number])
    raw = {
        **toy_run.RECIPE,
        "folder": str(tmp_path),
        "sources": [{"name": "photos", "type": "pairs", "kind": "pairs", "path": "images"}],
        "scan": {"held_out": 0},
        "mix": {
            "tokens": 1000,
            "sequence_length": toy_run.LENGTH,
            "stages": [{"name": "one", "share": 1, "weights": {"photos": 1}}],
        },
        "finetune_mix": {"sources": []},
        "evaluation": {},
    }
    read = pairs.read_plain

    def failing(storage: Storage, name: str, *more: Any) -> str:
        if name.startswith("03"):
            raise UnusableRow("read-error", "the storage did not answer")
        return read(storage, name, *more)

    monkeypatch.setattr(pairs, "read_plain", failing)
    recipe = toy_run.make(tmp_path / "work", "tokenize", raw)
    assert steps_of(recipe, tmp_path / "work")["scan"].rows["photos"].quarantined == {"read-error": 1}
    monkeypatch.setattr(pairs, "read_plain", read)
    plan = plan_retry(StepContext(recipe, str(tmp_path / "work"), "scan"))
    assert plan == RetryPlan(1, {"read-error": 1}, False, STORES)
    go(recipe, tmp_path / "work", plan)
    for step in STORES:
        assert steps_of(recipe, tmp_path / "work")[step].rows["photos"] == Rows(entered=12, out=12), step
