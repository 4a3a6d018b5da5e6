"""Manifests of checkpoints; saving and loading on real ranks are in test_loop.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import entry
from model.training.checkpoint import FOLDER, Checkpoint, list_checkpoints, read_checkpoint


def commit(store: Storage, step: int) -> Checkpoint:
    checkpoint = Checkpoint(step, 2, {"loader": {"consumed": step * 8}}, [entry(f"{FOLDER}/x", b"1")])
    store.put(checkpoint.manifest, checkpoint.dump())
    return checkpoint


def test_the_newest_comes_first_and_folders_without_a_manifest_do_not_count(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    assert list_checkpoints(store) == []
    made = [commit(store, step) for step in (9, 100, 20)]
    (tmp_path / FOLDER / "step-00000200").mkdir()
    assert list_checkpoints(store) == [made[1], made[2], made[0]]


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"format": "calumma-checkpoint", "version": 1}'])
def test_what_is_no_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    store = Storage(tmp_path)
    store.put(f"{FOLDER}/step-00000001.json", content)
    with pytest.raises(StoreError, match=r"step-00000001\.json"):
        list_checkpoints(store)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    made = commit(store, 3)
    store.put(made.manifest, json.dumps({**json.loads(made.dump()), "version": 2}).encode())
    with pytest.raises(StoreError, match="version 2"):
        read_checkpoint(store, made.manifest)
