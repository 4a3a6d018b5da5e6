from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import ResourceError
from infra.home import is_remote, local_side, whole_name


def test_a_folder_is_its_own_local_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_remote("work/emoji")
    assert whole_name("work/emoji/") == str(tmp_path / "work" / "emoji")
    assert local_side("work/emoji") == tmp_path / "work" / "emoji"


def test_a_folder_on_s3_has_one_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert is_remote("s3://bucket/run")
    assert whole_name("s3://bucket/run/") == "s3://bucket/run"
    side = local_side("s3://bucket/run")
    assert side.parent == tmp_path / "calumma"
    assert side.name.startswith("run-")
    assert side == local_side("s3://bucket/run/")
    assert side != local_side("s3://other/run"), "two buckets' runs of one name do not share a lock"


@pytest.mark.parametrize("name", ["s3:/bucket/run", "s3:", "s3:bucket/run", "gs:/x"])
def test_half_an_address_is_refused(name: str) -> None:
    with pytest.raises(ResourceError, match="two slashes"):
        whole_name(name)


@pytest.mark.parametrize("name", ["s3://bucket/run", "work/s3:/x", "a b/c", "./s3:/odd"])
def test_whole_names_are_taken(name: str) -> None:
    assert whole_name(name).endswith(name.removeprefix("./"))
