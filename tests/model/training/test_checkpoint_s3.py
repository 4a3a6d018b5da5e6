"""Checkpoints on a real S3 server that falters: committed last, whole or not there, read by whoever comes next."""

from __future__ import annotations

import pytest

from infra.storage import Storage
from model.training.checkpoint import FOLDER, list_checkpoints
from tests.model.training.test_checkpoint import Toy, alone, steps
from tests.s3.proxy import Proxy

__all__ = ["alone"]


def test_a_training_goes_on_from_s3(alone: None, s3_bucket: str, faulty_s3: Proxy) -> None:
    store = Storage(s3_bucket)
    for fault, method in (("lose", "PUT"), ("slow_down", "PUT"), ("lose", "DELETE"), ("error", "GET")):
        faulty_s3.add(fault, method=method, path=FOLDER, times=2)
    Toy(store, keep=2).train(0, 4)
    assert sum(faulty_s3.done.values()) == 8
    assert steps(store) == [4, 3]
    assert len(list(store.find(FOLDER))) == 4, "what is not kept any more leaves nothing"

    newest = list_checkpoints(store)[0].files[0].name
    store.put(newest, store.get(newest)[:-1])
    store.put(f"{FOLDER}/step-00000005/rank-00000-000.safetensors", b"of a killed training")
    toy = Toy(store)
    found = toy.checkpoints.load_latest()
    assert found is not None
    assert (found.step, found.state, toy.weight) == (3, {"at": 3}, 3.0)
    assert toy.said == ["step-00000004 is damaged and is not used"]
    assert [f.name for f in store.find(FOLDER)] == [found.manifest, *(f.name for f in found.files)]


def test_the_manifest_comes_after_the_files(alone: None, s3_bucket: str, faulty_s3: Proxy) -> None:
    Toy(Storage(s3_bucket)).train(1, 1)
    written = [path for method, path in faulty_s3.requests if method == "PUT" and FOLDER in path]
    manifests = [path.partition("?")[0].endswith(".json") for path in written]
    assert set(manifests) == {False, True}
    assert manifests == sorted(manifests)  # a busy machine repeats requests


def test_a_checkpoint_that_s3_does_not_take_is_said(
    alone: None, s3_bucket: str, faulty_s3: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = Toy(Storage(s3_bucket))
    toy.train(1, 1)
    faulty_s3.add("error", method="PUT", path=FOLDER, times=1000)
    with pytest.raises(Exception, match=f"{s3_bucket}.*PutObject failed after"):
        toy.train(2, 2)
    assert steps(Storage(s3_bucket)) == [1]
