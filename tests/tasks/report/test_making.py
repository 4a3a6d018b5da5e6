from __future__ import annotations

from typing import Any

import pytest

from tasks.context import StepContext
from tasks.report.making import code_counts, ledger, mixture, steps, stretches, text_tokenizer, times
from tasks.report.read import Run


@pytest.fixture
def run(toy_context: StepContext) -> Run:
    return Run(toy_context)


def test_stretches_of_stages() -> None:
    lines: list[dict[str, Any]] = [{"step": i, "stage": "a" if i < 4 else "b"} for i in range(1, 7)]
    assert stretches(lines) == {"a": (1, 3), "b": (4, 6)}


def test_every_line_of_the_ledger_closes(run: Run) -> None:
    lines = ledger(run)
    assert {line["step"] for line in lines} >= {"scan", "select", "encode", "tokenize"}
    for line in lines:
        gone = sum(sum(line[k].values()) for k in ("filtered", "duplicate", "quarantined", "removed"))
        assert line["in"] == line["out"] + gone
    # Sources come in the recipe's order, not in the alphabet's.
    assert [line["source"] for line in lines if line["step"] == "scan"] == ["shapes", "words", "stories", "talks"]


def test_codes_are_counted_from_the_sample_store(run: Run) -> None:
    counts = code_counts(run)
    pictures = 24 + 24 + 48  # pairs, stories, two conversations a shape
    assert len(counts) == 32
    assert sum(counts) == 16 * pictures


def test_the_mixtures_shares_sum_to_one(run: Run) -> None:
    found = mixture(run)
    assert [b["name"] for b in found["bars"]][:2] == ["stage-1", "stage-2"]
    for bar in found["bars"]:
        for kind in ("sources", "modalities"):
            assert sum(piece["share"] for piece in bar[kind]) == pytest.approx(1)
    assert found["cut_pictures"] == 0
    assert all(q["counted"] >= q["quota"] for q in found["quotas"])


def test_times_are_those_of_the_records(run: Run) -> None:
    found = times(run)
    assert [row["step"] for row in found["rows"]] == list(run.manifests)
    assert found["rows"][0]["seconds"] == 3.0
    assert found["working"] == sum(3.0 + i for i in range(11))


def test_steps_say_where_their_files_are(run: Run) -> None:
    for row in steps(run):
        folder = run.context.store(row["step"]).path()
        assert folder.name == row["fingerprint"][:12]
        assert row["bytes"] <= sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def test_what_texts_cost_in_tokens_is_shown_by_source_and_by_language(run: Run) -> None:
    found = text_tokenizer(run)
    sources, languages = found["tables"]
    assert list(sources["rows"]) == ["shapes", "words", "stories", "talks"]
    assert "en" in languages["rows"]
    for table in (sources, languages):
        assert table["most"] == max(row["tokens_per_character"] for row in table["rows"].values())
    assert languages["rows"]["en"]["tokens_per_word"] >= 1
    assert found["imported"] is None
