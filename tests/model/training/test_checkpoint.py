"""Checkpoints of one process with torch's optimizer alone; those of DeepSpeed's engines are in test_resharding.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import entry
from model.training.checkpoint import FOLDER, Checkpoint, Checkpoints, list_checkpoints, read_checkpoint


def commit(store: Storage, step: int) -> Checkpoint:
    checkpoint = Checkpoint(step, {"world": 2}, {"loader": {"consumed": step * 8}}, [entry(f"{FOLDER}/x", b"1")])
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
    store.put(made.manifest, json.dumps({**json.loads(made.dump()), "version": 3}).encode())
    with pytest.raises(StoreError, match="version 3.*Use the newer one"):
        read_checkpoint(store, made.manifest)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one."""
    meeting = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Toy:
    """A model whose weights are all the number of steps that it did, and its checkpoints."""

    def __init__(self, store: Storage, width: int = 3, **options: Any) -> None:
        self.model = nn.Linear(width, 2)
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.said: list[str] = []
        engine = SimpleNamespace(optimizer=optimizer)
        layout = {"zero_stage": 0, "precision": "fp32"}
        self.checkpoints = Checkpoints(
            store, engine, self.model, layout, say=self.said.append, **{"keep": 2, **options}
        )

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            for parameter in self.model.parameters():
                nn.init.constant_(parameter, step)
            self.checkpoints.save(step, {"at": step})
        self.checkpoints.wait()

    @property
    def weight(self) -> float:
        return self.model.weight[0, 0].item()


def steps(store: Storage) -> list[int]:
    return [c.step for c in list_checkpoints(store)]


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_newest_few_and_every_nth_are_kept(alone: None, tmp_path: Path) -> None:
    store = Storage(tmp_path)
    Toy(store, keep=2, keep_every=4).train(0, 11)
    assert steps(store) == [11, 10, 8, 4]
    assert {p.name for p in (tmp_path / FOLDER).iterdir() if p.is_dir()} == {f"step-{n:08d}" for n in (11, 10, 8, 4)}
    toy = Toy(store)
    found = toy.checkpoints.load_latest()
    assert found is not None
    assert (found.step, found.state, toy.weight) == (11, {"at": 11}, 11.0)
    assert toy.checkpoints.weights()["bias"].tolist() == [11.0, 11.0]


@pytest.mark.parametrize("harm", [tear, flip, Path.unlink])
def test_a_damaged_one_gives_way_to_the_one_before(alone: None, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    store = Storage(tmp_path)
    Toy(store).train(1, 2)
    harm(store.path(list_checkpoints(store)[0].files[0].name))
    toy = Toy(store)
    found = toy.checkpoints.load_latest()
    assert found is not None
    assert (found.step, toy.weight, steps(store)) == (1, 1.0, [1])
    assert toy.said == ["step-00000002 is damaged and is not used"]


def test_files_without_a_manifest_are_not_read_and_are_removed(alone: None, tmp_path: Path) -> None:
    store = Storage(tmp_path)
    Toy(store).train(1, 2)
    store.delete(list_checkpoints(store)[0].manifest)  # as if it had been killed before writing that
    toy = Toy(store)
    assert not (tmp_path / FOLDER / "step-00000002").exists()
    found = toy.checkpoints.load_latest()
    assert found is not None
    assert (found.step, toy.weight) == (1, 1.0)


def test_a_rollback_leaves_the_old_one_with_a_new_state_and_none_newer(alone: None, tmp_path: Path) -> None:
    store = Storage(tmp_path)
    toy = Toy(store, keep=9)
    toy.train(1, 5)
    found = toy.checkpoints.load_latest(3)
    assert found is not None
    assert (found.step, toy.weight) == (3, 3.0)
    toy.checkpoints.replace(found, {"at": 3, "skipped": [1, 2]})
    assert steps(store) == [3, 2, 1]
    assert list_checkpoints(store)[0].state == {"at": 3, "skipped": [1, 2]}
    assert toy.checkpoints.load_latest(0) is None


def test_training_goes_on_while_a_checkpoint_is_written(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds what was there when it was taken."""
    store, written, gate = Storage(tmp_path), Storage.put, threading.Event()

    def put(self: Storage, name: str, data: bytes) -> None:
        assert gate.wait(60)
        written(self, name, data)

    monkeypatch.setattr(Storage, "put", put)
    toy = Toy(store)
    nn.init.constant_(toy.model.weight, 1.0)
    toy.checkpoints.save(1, {"at": 1})
    assert steps(store) == []
    nn.init.constant_(toy.model.weight, 2.0)
    gate.set()
    toy.checkpoints.wait()
    assert steps(store) == [1]
    toy.checkpoints.load_latest()
    assert toy.weight == 1.0


def test_what_cannot_be_written_is_said_at_the_next_save(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, put = Toy(Storage(tmp_path)), Storage.put
    toy.train(1, 1)

    def full(self: Storage, name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "put", full)
        with pytest.raises(StoreError, match="could not be written: OSError: .*No space left"):
            toy.train(2, 2)
        patch.setattr(Storage, "put", put)
        patch.setattr(Storage, "put_new", full)
        with pytest.raises(StoreError, match="could not be written: OSError: .*No space left"):
            toy.train(3, 3)
    assert steps(Storage(tmp_path)) == [1]


def test_another_model_is_refused(alone: None, tmp_path: Path) -> None:
    Toy(Storage(tmp_path)).train(1, 1)
    with pytest.raises(StoreError, match=r"weight has shape \(2, 3\), the model's \(2, 4\)"):
        Toy(Storage(tmp_path), width=4).checkpoints.load_latest()


def test_a_model_of_the_same_shapes_is_refused_with_what_differs(alone: None, tmp_path: Path) -> None:
    """Also when another training begins with it."""
    store = Storage(tmp_path)
    described = {"norm": "pre", "rope_theta": 10_000.0, "layers": 2}
    Toy(store, describe=described).train(1, 1)
    other = described | {"norm": "reordered", "rope_theta": 500.0}
    with pytest.raises(StoreError, match="norm was 'pre' and is 'reordered'; rope_theta was 10000.0 and is 500.0"):
        Toy(store, describe=other).checkpoints.load_latest()
    with pytest.raises(StoreError, match="step-00000001.json: it is of another model"):
        Toy(Storage(tmp_path / "new"), describe=other).checkpoints.load_from(store, 1)
    found = Toy(store, describe=described | {"bias": False}).checkpoints.load_latest()  # what it does not say is let be
    assert found is not None
    assert found.model == described
