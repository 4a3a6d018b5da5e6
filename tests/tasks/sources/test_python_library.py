from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from infra.errors import SourceError
from tasks.sources import open_source
from tasks.sources.base import RawSample, Source
from tasks.sources.config import SourceConfig
from tasks.sources.python_library import functions, module_files


def source(kind: str, **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type=kind, kind="text", options=options), Path())


def texts(found: Source) -> dict[str, str]:
    rows = [s for item in found.work_items(50) for s in found.read(item)]
    assert all(isinstance(s, RawSample) for s in rows)
    return {s.key: s.segments[0].text or "" for s in rows if isinstance(s, RawSample)}


def test_modules_are_whole_source_files() -> None:
    found = texts(source("python-library", packages=["json"], max_bytes=60_000))
    assert {"textwrap.py", "json/decoder.py"} <= set(found)
    assert all(len(t.encode()) <= 60_000 for t in found.values())
    assert not any("test" in Path(k).parts or "_sysconfigdata" in k for k in found)
    ast.parse(found["textwrap.py"])


def test_an_unknown_package_is_named() -> None:
    with pytest.raises(SourceError, match="no package nosuch"):
        source("python-library", packages=["nosuch"]).digest()


def test_topics_and_docstrings() -> None:
    found = texts(source("python-topics"))
    assert "assert_stmt" in found["topic:assert"]
    assert "textwrap.dedent" in found["docstrings:textwrap.py"]
    assert not any(k.startswith("docstrings:") for k in texts(source("python-topics", docstrings=False)))


def test_digests_follow_what_is_read() -> None:
    assert source("python-topics").digest() != source("python-topics", docstrings=False).digest()
    assert source("python-library").digest() == source("python-library").digest()
    assert source("python-library").digest() != source("python-library", packages=[]).digest()


def test_functions_are_documented_short_and_parse() -> None:
    found = functions(400)
    assert len(found) > 100
    for f in found:
        assert len(f.source) <= 400
        assert "\n" not in f.purpose
        tree = ast.parse(f.source).body[0]
        assert isinstance(tree, ast.FunctionDef)
        assert tree.name == f.name
        assert f.signature.startswith(f"{f.name}(")


def test_the_listing_is_sorted_and_whole() -> None:
    files = module_files()
    assert list(files) == sorted(set(files))
    assert len(files) > 100
