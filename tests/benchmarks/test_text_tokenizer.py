"""The benchmark of the text tokenizer runs and gives the figures that it promises."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import text_tokenizer, texts
from benchmarks.text_tokenizer import slices
from benchmarks.texts import adversarial, real_texts, strings


def test_it_runs_and_ends_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--megabytes", "0.2", "--pieces", "700", "--strings", "1500", "--rounds", "2", "--work", "0.05"]
    text_tokenizer.main(["--json", *small])
    *_, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["train_0.2mb_pieces"] == figures["pieces"] == 700
    assert figures["train_0.2mb_peak_mib"] > 20
    assert figures["equal_strings"] == figures["strings_that_come_back"] == figures["strings_of_text_ids_alone"] == 1
    assert figures["strings"] == 1500
    assert figures["processes"] == 2
    for key in ("process_scaling", "process_scaling_cpu", "tokens_per_second_per_core", "ratio_to_tokenizers"):
        assert figures[key] > 0
    assert figures["machine"]["sentencepiece"]


def test_real_texts_are_so_many_bytes_and_none_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(texts, "SHARED_DATA", tmp_path)
    (tmp_path / "text").mkdir()
    lines = [
        {"id": "short", "text": "a text of its own, " + n * 10, "tags": ["one more text, also read"]}
        for n in "abc\u2028"
    ]
    (tmp_path / "text" / "a.jsonl").write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in lines), "utf-8")
    found = list(real_texts(300_000))
    assert found[:3] == [lines[0]["text"], "one more text, also read", lines[1]["text"]]
    assert lines[3]["text"] in found[:6]
    assert 299_990 < sum(len(t.encode()) for t in found) <= 300_000
    assert len(set(found)) == len(found)
    assert found == list(real_texts(300_000))


def test_no_text_is_in_two_slices() -> None:
    parts = slices(3, 20_000)
    assert len({t for part in parts for t in part}) == sum(map(len, parts))
    assert all(parts)


def test_strings_are_the_same_every_time_and_of_many_kinds() -> None:
    assert list(strings(200)) == list(strings(200))
    rng = random.Random(1)
    made = [adversarial(rng) for _ in range(2000)]
    for sign in ("<racm3:break>", "\u2581", "\0", "IMGIMG", "\n\n\n", "e\u0301"):
        assert any(sign in text for text in made)
    assert not any(0xD800 <= ord(c) < 0xE000 for text in made for c in text)
    assert max(ord(c) for text in made for c in text) > 0x10000
