from __future__ import annotations

from pathlib import Path

import pytest

from tasks.sources.root import Root
from tests.tasks.sources.reading import upload

NAMES = ["a.jsonl", "b/c.jsonl", "b/d.txt", ".hidden/e.jsonl", ".f.jsonl"]


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    if request.param == "disk":
        return str(tmp_path / "in")
    upload(f"memory://{tmp_path.name}/in", tmp_path / "in")
    return f"memory://{tmp_path.name}/in"


def test_a_folder_lists_what_is_wanted(place: str) -> None:
    root = Root.of(place)
    assert root is not None
    assert root.file is None
    assert [f.name for f in root.files(lambda n: n.endswith(".jsonl"))] == ["a.jsonl", "b/c.jsonl"]


def test_a_file_is_alone_in_its_folder(place: str) -> None:
    root = Root.of(f"{place}/b/c.jsonl")
    assert root is not None
    assert root.file == "c.jsonl"
    assert [(f.name, f.size) for f in root.files(lambda n: True)] == [("c.jsonl", 9)]
    assert list(root.files(lambda n: n.endswith(".txt"))) == []
    assert root.storage.get("c.jsonl") == b"b/c.jsonl"
    assert root.url().endswith("/b/c.jsonl")


@pytest.mark.parametrize("name", ["no", "a.jsonl/x", "b/c", "b/nothing/at/all"])
def test_what_is_not_there_is_nothing(place: str, name: str) -> None:
    assert Root.of(f"{place}/{name}") is None
