from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import SourceError
from tasks.sources import READERS, open_source
from tasks.sources.base import Source, digest_of, sample_id
from tasks.sources.config import SourceConfig


@pytest.mark.parametrize("name", READERS)
def test_every_reader_opens_without_reading(name: str) -> None:
    found = open_source(SourceConfig(name="s", type=name, kind="text"))
    assert isinstance(found, Source)


def test_a_wrong_type_lists_the_known_ones() -> None:
    with pytest.raises(SourceError, match="emoji-pairs"):
        open_source(SourceConfig(name="s", type="emojis", kind="text"))
    with pytest.raises(SourceError, match="cannot be imported"):
        open_source(SourceConfig(name="s", type="no.such:Reader", kind="text"))
    with pytest.raises(SourceError, match="cannot be called as Reader"):
        open_source(SourceConfig(name="s", type="pathlib:PurePosixPath", kind="text"))
    with pytest.raises(SourceError, match="lacks digest"):
        open_source(SourceConfig(name="s", type="tasks.sources.base:BaseSource", kind="text"))


@pytest.mark.parametrize("path", [None, "nowhere.jsonl", "memory://nowhere/x"])
def test_a_wrong_path_is_named(path: str | None, tmp_path: Path) -> None:
    config = SourceConfig(name="mine", type="pairs", kind="pairs", path=path)
    with pytest.raises(SourceError, match="source mine") as e:
        open_source(config, tmp_path).digest()
    assert path is None or path in str(e.value)


def test_ids_and_digests_do_not_run_together() -> None:
    assert len(sample_id("a", "b")) == 16
    assert sample_id("a", "bc") != sample_id("ab", "c")
    assert digest_of("a", "bc") != digest_of("ab", "c")
    assert digest_of("a") != digest_of("a", "")
