from __future__ import annotations

from pathlib import Path

import pytest

from infra.storage import Storage
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


def test_broken_links_are_listed_where_asked_for(tmp_path: Path) -> None:
    for name in ("b/c.png", "b.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("a.png", "b/d.png", "c.png", "e.txt"):
        (tmp_path / name).symlink_to("nothing")
    root = Root(Storage(tmp_path))

    def wanted(name: str) -> bool:
        return name.endswith(".png")

    assert [f.name for f in root.files(wanted)] == ["b.png", "b/c.png", "d.png"]
    found = list(root.files(wanted, broken_links=True))
    assert [f.name for f in found] == ["a.png", "b.png", "b/c.png", "b/d.png", "c.png", "d.png"]
    assert [f.size for f in found] == [0, 1, 1, 0, 0, 1]


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
