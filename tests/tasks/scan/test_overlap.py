from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from infra.errors import SourceError
from tasks.scan.config import BenchmarkConfig
from tasks.scan.overlap import Benchmark, quoted
from tasks.sources.base import Segment
from tests.tasks.scan.test_examine import document, look, pair

LONG = "which of these is the most likely reason why the groundhog went back into its burrow before noon"
SHORT = "what do you call a man without a shovel"


def benchmark(*texts: str, **config: object) -> Benchmark:
    return Benchmark.of(BenchmarkConfig.model_validate({"name": "b", "path": "x", **config}), texts)


def hit(found: Benchmark, *texts: str) -> bool:
    return quoted([found], texts) == "b"


def test_thirteen_words_in_a_row_are_a_quotation_however_they_are_set() -> None:
    found = benchmark(LONG)
    said = LONG.split()
    assert hit(found, "He asked: “" + LONG.upper().replace(" ", ",  ") + "?” and left")
    assert hit(found, "x " + " ".join(said[2:15]) + " y")
    assert not hit(found, "x " + " ".join(said[2:14]) + " y")
    assert not hit(found, " ".join(said[:9]), " ".join(said[9:])), "texts of a sample do not run into each other"


def test_short_items_count_whole_and_very_short_ones_not_at_all() -> None:
    found = benchmark(SHORT, "Douglas", min_words=8)
    assert hit(found, f"A riddle: {SHORT}? Douglas.")
    assert not hit(found, "what do you call a man without a spade? Douglas")
    assert not hit(benchmark(SHORT, LONG, min_words=10), SHORT)


def test_least_overlap_is_a_number_or_a_share() -> None:
    quote = " ".join(LONG.split()[:14])  # two 13-grams
    noise = " ".join(f"w{n}" for n in range(20))
    assert hit(benchmark(LONG, min_overlap=2), quote)
    assert not hit(benchmark(LONG, min_overlap=3), quote)
    assert hit(benchmark(LONG, min_overlap=0.9), quote)
    assert not hit(benchmark(LONG, min_overlap=0.9), f"{quote} {noise}")
    assert hit(benchmark(LONG, min_overlap=0.05), f"{quote} {noise}")


def test_every_kind_of_sample_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(f"{LONG}\n\n{SHORT}\n", encoding="utf-8")
    config = {"benchmarks": [{"name": "ours", "path": str(tmp_path / "b.txt")}]}
    answer = document(Segment("q", role="user"), Segment(LONG, role="assistant"))
    samples = ((pair("x", LONG), "pairs"), (document(Segment(LONG)), "text"), (answer, "messages"))
    for sample, kind in samples:
        found = look(sample, kind, **config)  # type: ignore[arg-type]
        assert (found.state, found.reason) == ("filtered", "benchmark-ours")
    assert look(document(Segment(LONG[:50])), "text", **config).state == "kept"  # type: ignore[arg-type]


def test_files_are_json_lines_with_fields_or_text_also_packed(tmp_path: Path) -> None:
    rows = [{"q": LONG, "choices": [SHORT, "no"], "gold": 1}, {"q": "?", "choices": [], "gold": 0}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "b.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))

    def load(path: str, **config: object) -> Benchmark:
        return Benchmark.load(BenchmarkConfig.model_validate({"name": "b", "path": path, **config}), tmp_path)

    for name in ("b.jsonl", "b.jsonl.gz"):
        assert hit(load(name), SHORT)
        assert hit(load(name), LONG)
    only = load("b.jsonl", fields=["q"])
    assert hit(only, LONG)
    assert not hit(only, SHORT)
    assert len(only.grams) == len(LONG.split()) - 12
    with pytest.raises(SourceError, match=r"b\.jsonl:1: .*no field 'question', only 'q', 'choices', 'gold'"):
        load("b.jsonl", fields=["question"])
    with pytest.raises(SourceError, match=r"no-such.* no such file; correct scan\.benchmarks\.b\.path"):
        load("no-such.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"q": 1}\n[1]\n')
    with pytest.raises(SourceError, match=r"bad\.jsonl:2: the line is not a JSON object"):
        load("bad.jsonl")
    (tmp_path / "none.jsonl").write_text('{"q": "too short"}\n')
    with pytest.raises(SourceError, match="no text of 8 words or more"):
        load("none.jsonl")


@pytest.mark.parametrize(
    "name", ["hellaswag_val_2000", "mmlu_test", "piqa", "gsm8k_test", "arc_easy", "lambada_openai"]
)
def test_real_benchmarks_are_found_where_quoted_and_nowhere_else(name: str, shared_data: Path) -> None:
    path = shared_data / "bench" / f"{name}.jsonl"
    found = Benchmark.load(BenchmarkConfig(name=name, path=str(path)), ".")
    items = [json.loads(line) for line in path.read_text("utf-8").splitlines()][::40]
    texts = [max(_texts(item), key=len) for item in items]
    long = [text for text in texts if len(text.split()) > 20]
    assert len(long) >= 10
    assert all(quoted([found], [f"As an exam once put it: {text} What would you say?"]) for text in long)
    prose = [json.loads(line)["text"] for line in (shared_data / "text" / "wiki_demo.jsonl").open(encoding="utf-8")]
    assert sum(bool(quoted([found], [text])) for text in prose[:200]) <= 1, "of 200 articles"


def _texts(item: dict[str, object]) -> list[str]:
    listed = [v for value in item.values() for v in (value if isinstance(value, list) else [value])]
    return [value for value in listed if isinstance(value, str)]
