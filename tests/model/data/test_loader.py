from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.plan import load_plan
from infra.store.sequences import SequenceReader
from model.data.loader import IGNORE, SequenceLoader, held_out, held_out_sources
from model.vocabulary import PAD
from tests.model.data.reading import RAMP, global_batches, same

within = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@within
@given(
    run=st.sampled_from(["pretrain", "finetune"]),
    batch=st.integers(1, 12),
    world=st.sampled_from([1, 2, 3, 8]),
    micro=st.one_of(st.none(), st.integers(1, 5)),
)
def test_global_batches_do_not_depend_on_ranks_or_micro_batches(
    mix_store: Storage, run: str, batch: int, world: int, micro: int | None
) -> None:
    alone = global_batches(mix_store, run, batch, 1, None)
    shared = global_batches(mix_store, run, batch, world, micro)
    assert same(alone, shared)


def test_every_sequence_of_every_stage_comes_once_and_stages_do_not_mix(mix_store: Storage) -> None:
    batches = global_batches(mix_store, "pretrain", 8, 2, 2)
    assert [len(b["sequences"]) for b in batches] == [8, 8, 8, 1, 8, 3]
    assert sorted(torch.cat([b["sequences"] for b in batches[:4]]).tolist()) == list(range(25))
    assert sorted(torch.cat([b["sequences"] for b in batches[4:]]).tolist()) == list(range(11))


def test_epochs(mix_store: Storage) -> None:
    assert SequenceLoader(mix_store, "finetune", 4, epochs=1).steps == 3
    assert SequenceLoader(mix_store, "finetune", 4).steps == 6
    again = SequenceLoader(mix_store, "finetune", 4, epochs=4)
    epochs: dict[str, list[int]] = {}
    for batch in again:
        epochs.setdefault(again.stage, []).extend(s for s in batch["sequences"].tolist() if s >= 0)
    assert {name: sorted(seen) for name, seen in epochs.items()} == {
        f"epoch-{e}": list(range(9 if e % 2 == 0 else 10)) for e in range(4)
    }
    assert epochs["epoch-0"] != epochs["epoch-2"]


def test_labels_follow_from_tokens_documents_and_loss_bits(mix_store: Storage, fakes: Any) -> None:
    for run in ("pretrain", "finetune"):
        plan = load_plan(mix_store)
        readers = [SequenceReader(mix_store, s.folder) for s in (plan.stages if run == "pretrain" else plan.finetune)]
        loader = SequenceLoader(mix_store, run, 4)  # type: ignore[arg-type]
        names = [s.name for s in (plan.stages if run == "pretrain" else plan.finetune)]
        for batch in loader:
            for row, sequence in enumerate(batch["sequences"].tolist()):
                if sequence < 0:
                    continue
                tokens, starts, loss = readers[names.index(loader.stage)].sequence(sequence)
                for t in range(fakes.length):
                    last = t == fakes.length - 1 or starts[t + 1] or tokens[t + 1] == PAD
                    counts = not last and (loss is None or loss[t + 1])
                    label = int(batch["labels"][row, t])
                    assert label == (int(tokens[t + 1]) if counts else IGNORE)
                    assert bool(batch["image"][row, t]) == (label in range(4, fakes.vocabulary.boi + 1))
                    document = -1 if tokens[t] == PAD else int(starts[: t + 1].sum()) - 1
                    assert int(batch["documents"][row, t]) == document


def test_a_flipped_byte_stops_the_loader(fakes: Any, tmp_path: Path) -> None:
    store = Storage(tmp_path)
    plan = fakes.write_plan(store)
    name = f"{plan.stages[0].folder}/seq-000000.u16"
    data = bytearray(store.get(name))
    data[100] ^= 4
    store.put(name, bytes(data))
    with pytest.raises(StoreError, match="checksum"):
        list(SequenceLoader(store, "pretrain", 8))


def test_held_out_is_shared_evenly(mix_store: Storage) -> None:
    assert held_out_sources(mix_store) == ["a"]
    alone = [s for b in held_out(mix_store, "a", batch=2) for s in b["sequences"].tolist()]
    assert alone == [0, 1, 2, 3, 4, -1]
    ranks = [list(held_out(mix_store, "a", 3, batch=2, rank=r, world=2)) for r in range(2)]
    assert [[b["sequences"].tolist() for b in rank] for rank in ranks] == [[[0, 2]], [[1, -1]]]
    with pytest.raises(StoreError, match="'b'"):
        list(held_out(mix_store, "b"))


def test_a_picture_is_seen_as_one(mix_store: Storage, fakes: Any) -> None:
    batch = next(iter(SequenceLoader(mix_store, "pretrain", 8)))
    pictures = int((batch["labels"] == fakes.picture[0]).sum())
    assert pictures > 0
    assert int(batch["image"].sum()) == pictures * len(fakes.picture)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_of_a_data_loader_change_nothing(mix_store: Storage) -> None:
    expected = global_batches(mix_store, "pretrain", RAMP, 1, None)
    for world in (1, 2, 3, 8):
        for workers in (0, 1, 4):
            assert same(global_batches(mix_store, "pretrain", RAMP, world, 2, workers), expected)
