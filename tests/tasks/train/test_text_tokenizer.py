from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import RecipeError, SourceError
from infra.store.commit import load_step
from model.text_tokenizer.backends import SentencePieceBackend
from model.text_tokenizer.codec import TextTokenizer
from tasks.context import StepContext
from tasks.fingerprint import fingerprints, ingredients
from tasks.scan import run as scan
from tasks.scan import select
from tasks.scan.selected import selected, work_items
from tasks.sources.base import RawSample, Segment, WorkItem
from tasks.status import differences
from tasks.train import text_tokenizer
from tasks.train.fertility import by_source
from tasks.train.text_tokenizer import is_taken, quotas, reading_plan, texts_of
from tests.model.text_tokenizer.standins import byte_level
from tests.tasks import file_sources
from tests.tasks.file_sources import Jsonl, MakeContext

jsonl, make_context = file_sources.jsonl, file_sources.make_context
SOURCES = [
    {"name": "prose", "type": "text", "kind": "text", "path": "prose.jsonl"},
    {"name": "code", "type": "text", "kind": "text", "path": "code.jsonl"},
]


@pytest.fixture
def scanned(make_context: MakeContext, jsonl: Jsonl) -> StepContext:
    jsonl("prose.jsonl", [{"text": f"the {n}th red apple <racm3:break> lies on the table\n"} for n in range(200)])
    jsonl("code.jsonl", [{"text": f"def f{n}(x):\n    return x + {n}\n"} for n in range(200)])
    context = make_context("text-tokenizer", SOURCES, scan={"item_samples": 64, "held_out": 0.2})
    scan.run(StepContext(context.recipe, context.root, "scan"), workers=0)
    select.run(StepContext(context.recipe, context.root, "select"))
    return context


def test_the_step_writes_a_tokenizer_of_the_vocabularys_size(scanned: StepContext) -> None:
    text_tokenizer.run(scanned)
    manifest = load_step(scanned.store())
    assert manifest is not None
    assert [f.name for f in manifest.files] == ["text.json", "text.model"]
    tokenizer = TextTokenizer.load(scanned.store())
    assert tokenizer.vocabulary == scanned.recipe.vocabulary
    assert tokenizer.decode(tokenizer.encode("def f(x): IMGIMGAZ")) == "def f(x): IMGIMGAZ"
    facts = manifest.facts
    assert facts["pieces"] + facts["unused_ids"] == scanned.recipe.vocabulary.text_pieces
    assert set(facts["fertility"]) == {"prose", "code"}
    assert set(facts["fertility"]["prose"]) == {"en"}
    assert all(f["bytes"] > 1.5 * f["tokens"] > 0 for f in by_source(facts["fertility"]).values())


def test_only_training_samples_are_read_and_the_same_ones_every_time(scanned: StepContext) -> None:
    text_tokenizer.run(scanned)
    manifest = load_step(scanned.store())
    assert manifest is not None
    training = {"prose": 0, "code": 0}
    for item in work_items(scanned):
        for raw, row in selected(scanned, item):
            if not row.held_out:
                training[item.source] += sum(len(t.encode()) for t in texts_of(raw))
    assert manifest.facts["trained_on_bytes"] == training
    model = scanned.store().get(SentencePieceBackend.file)
    text_tokenizer.run(scanned)
    assert scanned.store().get(SentencePieceBackend.file) == model


def test_a_small_sample_follows_the_weights(scanned: StepContext, make_context: MakeContext) -> None:
    config = {"sample_bytes": 3000, "weights": {"prose": 2, "code": 1}}
    scan_config = scanned.recipe.scan.model_dump()
    context = make_context("text-tokenizer", SOURCES, scan=scan_config, text_tokenizer=config)
    text_tokenizer.run(context)
    manifest = load_step(context.store())
    assert manifest is not None
    taken = manifest.facts["trained_on_bytes"]
    assert 1000 < taken["prose"] < 3000
    assert 300 < taken["code"] < 1800


def test_sources_without_text_are_an_error(scanned: StepContext, make_context: MakeContext) -> None:
    config = {"weights": {"prose": 0, "code": 0}}
    context = make_context("text-tokenizer", SOURCES, scan=scanned.recipe.scan.model_dump(), text_tokenizer=config)
    with pytest.raises(SourceError, match="no text"):
        text_tokenizer.run(context)


SIZES = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 10**6), min_size=1)
WEIGHTS = st.dictionaries(st.sampled_from("abcde"), st.floats(0, 10, allow_subnormal=False))


@given(SIZES, WEIGHTS, st.integers(1, 10**7))
def test_quotas_are_bounded_fill_the_total_and_follow_the_weights(
    available: dict[str, int], weights: dict[str, float], total: int
) -> None:
    found = quotas(available, weights, total)
    assert found.keys() == available.keys()
    assert all(0 <= found[s] <= available[s] for s in available)
    wanted = {s for s in available if weights.get(s, 1.0) > 0}
    assert all(found[s] == 0 for s in available if s not in wanted)
    possible = min(total, sum(available[s] for s in wanted))
    assert possible - len(available) <= sum(found.values()) <= possible
    bounded = [s for s in wanted if found[s] < available[s]]
    for s in bounded:  # of those that are not used up, bytes go by weight
        for t in bounded:
            ratio = weights.get(s, 1.0) / weights.get(t, 1.0)
            assert found[s] <= (found[t] + 1) * ratio + 1


def test_a_short_source_gives_all_and_the_others_share_the_rest() -> None:
    assert quotas({"a": 10, "b": 1000, "c": 1000}, {"b": 3}, 410) == {"a": 10, "b": 300, "c": 100}


def test_texts_are_taken_at_the_rate_and_by_seed() -> None:
    taken = [is_taken(n.to_bytes(16, "little"), 0, 0.25, 1) for n in range(4000)]
    assert 850 < sum(taken) < 1150
    assert taken != [is_taken(n.to_bytes(16, "little"), 0, 0.25, 2) for n in range(4000)]
    assert all(is_taken(bytes(16), n, 1.0, 0) for n in range(100))


def test_no_more_items_are_read_than_hold_a_few_times_the_quota() -> None:
    items = [WorkItem("s", n, {}) for n in range(50)]
    available = {i.part: 1000 for i in items}
    plan = reading_plan(items, available, {"s": 1500}, seed=0)
    assert len(plan) == 6
    assert [i.index for i, _ in plan] == sorted(i.index for i, _ in plan)
    assert {rate for _, rate in plan} == {0.25}
    assert [i for i, _ in plan] != [i for i, _ in reading_plan(items, available, {"s": 1500}, seed=1)]
    assert reading_plan(items, available, {"s": 50_000}, seed=0) == [(i, 1.0) for i in items]
    assert reading_plan(items, available, {"s": 0}, seed=0) == []


def test_every_caption_and_segment_is_a_text() -> None:
    pair = RawSample("k", "f", 1, captions=("a", "b"))
    document = RawSample("k", "f", 1, segments=(Segment("c"), Segment(image=0), Segment("d")))
    assert [*texts_of(pair), *texts_of(document)] == ["a", "b", "c", "d"]


def test_a_tokenizer_is_imported_where_the_recipe_names_a_file(
    scanned: StepContext, make_context: MakeContext, tmp_path: Path
) -> None:
    vocabulary = scanned.recipe.vocabulary
    file = tmp_path / "released.json"
    file.write_bytes(byte_level(vocabulary))
    config = {"file": str(file), "code": ["code"], "sample_bytes": 100_000}
    scan_config = scanned.recipe.scan.model_dump()
    context = make_context("text-tokenizer", SOURCES, scan=scan_config, text_tokenizer=config)
    text_tokenizer.run(context)
    manifest = load_step(context.store())
    assert manifest is not None
    assert [f.name for f in manifest.files] == ["text.json", "text.tokenizer.json"]
    facts = manifest.facts
    assert facts["imported"] == {
        "file": "released.json",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "alters": [],
    }
    assert "trained_on_bytes" not in facts
    assert set(facts["fertility"]) == {"prose", "code"}
    tokenizer = TextTokenizer.load(context.store())
    assert tokenizer.decode(tokenizer.encode("a <racm3:break>  b")) == "a <racm3:break>  b"

    before = fingerprints(context.recipe)
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_bytes(file.read_bytes())
    moved = make_context(
        "text-tokenizer", SOURCES, scan=scan_config, text_tokenizer={**config, "file": str(elsewhere), "code": []}
    )
    after = fingerprints(moved.recipe)
    assert {step for step in before if before[step] != after[step]} == {"report"}, "which shows code apart no longer"
    trained_by = {"sample_bytes": 9, "weights": {"code": 2}, "max_sentence_bytes": 999, "character_coverage": 0.99}
    idle = make_context("text-tokenizer", SOURCES, scan=scan_config, text_tokenizer=config | trained_by)
    assert fingerprints(idle.recipe) == before, "what only training asks for decides nothing"
    file.write_bytes(file.read_bytes() + b"\n")
    changed = fingerprints(context.recipe)
    assert changed["text-tokenizer"] != before["text-tokenizer"]
    assert changed["encode"] == before["encode"]
    kept = ingredients(scanned.recipe)["text-tokenizer"]
    changed_keys = differences(kept, ingredients(context.recipe)["text-tokenizer"])
    assert set(changed_keys) == {"text_tokenizer.file", *(f"text_tokenizer.{key}" for key in trained_by)}
    with pytest.raises(SourceError, match=r"released.json: the tokenizer changed after the run began"):
        text_tokenizer.run(context)
    file.unlink()
    with pytest.raises(SourceError, match=r"released.json: no such file; correct text_tokenizer.file"):
        fingerprints(context.recipe)


def test_a_source_of_code_must_exist(make_context: MakeContext) -> None:
    with pytest.raises(RecipeError, match="no source is named 'cod'; did you mean 'code'"):
        make_context("text-tokenizer", SOURCES, text_tokenizer={"code": ["cod"]})
