"""docs/sources.md says what is there, and its example works."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.config import Config
from tasks.encode.decode import ERROR_CLASSES
from tasks.sources import (
    READERS,
    html_text,
    img2dataset,
    interleaved,
    markdown,
    mds,
    messages,
    obelics,
    open_source,
    pairs,
    pairs_parquet,
    text,
    tokens,
    webdataset,
)
from tasks.sources.base import BadRow, RawSample
from tasks.sources.config import SourceConfig
from tasks.sources.faults import FAULTS
from tests.tasks.sources.reading import rows

DOC = (Path(__file__).resolve().parents[3] / "docs" / "sources.md").read_text("utf-8")
OPTIONS: dict[str, type[Config]] = {
    "pairs": pairs.PairOptions,
    "pairs-parquet": pairs_parquet.PairsParquetOptions,
    "webdataset": webdataset.WebdatasetOptions,
    "img2dataset": img2dataset.Img2datasetOptions,
    "text": text.TextOptions,
    "interleaved": interleaved.InterleavedOptions,
    "obelics": obelics.ObelicsOptions,
    "html": html_text.HtmlOptions,
    "markdown": markdown.MarkdownOptions,
    "messages": messages.MessageOptions,
    "tokens": tokens.TokensOptions,
    "mds": mds.MdsOptions,
    "megatron": Config,
}


def test_every_type_and_every_option_is_in_the_table() -> None:
    table = {m[1]: m[2] for m in re.finditer(r"^\| `([\w-]+)` \| \w.*\| ([^|]*) \|$", DOC, re.MULTILINE)}
    assert {n: set(re.findall(r"`(\w+)`", options)) for n, options in table.items()} == {
        n: set(cls.model_fields) for n, cls in OPTIONS.items()
    }
    assert set(table) == {n for n in READERS if not n.startswith(("emoji", "python"))}
    assert all(f"`{n}`" in DOC for n in READERS)


def test_every_class_in_the_table_of_faults_exists() -> None:
    part = DOC.partition("## What becomes of faults")[2].partition("##")[0]
    named = {
        n
        for line in part.splitlines()
        if line.startswith("|")
        for n in re.findall(r"`([\w-]+)`", line.rpartition("| ")[2])
    }
    assert named
    assert named <= set(FAULTS) | set(ERROR_CLASSES)


def test_the_example_of_a_source_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(m for m in re.findall(r"```python\n(.*?)```", DOC, re.DOTALL) if "class Fortunes" in m)
    recipes: list[dict[str, Any]] = [yaml.safe_load(m) for m in re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)]
    config = next(s for r in recipes for s in r["sources"] if s["name"] == "fortunes")
    (tmp_path / "fortunes.py").write_text(code, encoding="utf-8")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.fortune").write_text("one\n%\ntwo\nlines\n%\nthree\n", encoding="utf-8")
    (tmp_path / "texts" / "b.fortune.gz").write_bytes(gzip.compress(b"four\n%\nfive")[:-9])
    monkeypatch.syspath_prepend(tmp_path)
    found = rows(open_source(SourceConfig(**config), tmp_path))
    good = [r for r in found if isinstance(r, RawSample)]
    assert [(s.key, s.segments[0].text) for s in good] == [
        ("a.fortune#1", "one"),
        ("a.fortune#2", "two\nlines"),
        ("a.fortune#3", "three"),
    ]
    assert [(r.file, r.error) for r in found if isinstance(r, BadRow)] == [("b.fortune.gz", "damaged-file")]


def test_the_other_recipes_in_the_page_are_sources() -> None:
    for text_ in re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL):
        for source in yaml.safe_load(text_)["sources"]:
            open_source(SourceConfig(**source)) if ":" not in source["type"] else SourceConfig(**source)
