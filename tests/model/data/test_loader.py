from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from infra.errors import RecipeError, StoreError
from infra.storage import Storage
from infra.store.plan import load_plan
from infra.store.sequences import SequenceReader
from model.data.loader import IGNORE, Batch, SequenceLoader, held_out, held_out_sources
from model.data.steps import BatchSizes
from model.vocabulary import PAD

within = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RAMP = BatchSizes.of(8, [(3, 2), (17, 5)])
KEYS = {"tokens", "labels", "loss_mask", "documents", "positions", "image", "modality", "sequences"}


def by_step(micros: Iterable[Batch]) -> list[list[Batch]]:
    """The micro-batches of each step: the position moves with a step's last one."""
    steps: list[list[Batch]] = [[]]
    before = 0
    for micro in micros:
        steps[-1].append(micro)
        if int(micro["consumed"]) != before:
            before = int(micro["consumed"])
            steps.append([])
    return steps[:-1]


def global_batches(
    store: Storage, run: str, batch: int | BatchSizes, world: int, micro: int | None, workers: int = 0
) -> list[Batch]:
    """Each step's rows in the order of the global batch, without the rows that only fill up."""
    loaders = [SequenceLoader(store, run, batch, rank, world, micro) for rank in range(world)]  # type: ignore[arg-type]
    ranks = [by_step(DataLoader(loader, batch_size=None, num_workers=workers)) for loader in loaders]
    assert {len(steps) for steps in ranks} == {loaders[0].steps}
    found = []
    for mine in zip(*ranks, strict=True):
        assert len({len(micros) for micros in mine}) == 1
        by_rank = [{key: torch.cat([m[key] for m in micros]) for key in KEYS} for micros in mine]
        # Row i is rank i mod world's.
        rows = {key: torch.stack([r[key] for r in by_rank], dim=1).flatten(0, 1) for key in KEYS}
        real = rows["sequences"] >= 0
        assert (rows["tokens"][~real] == PAD).all()
        assert (rows["labels"][~real] == IGNORE).all()
        assert bool(real[: int(real.sum())].all())
        found.append({key: value[real] for key, value in rows.items()})
    return found


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
    assert len(alone) == len(shared)
    for a, b in zip(alone, shared, strict=True):
        for key in KEYS:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


def test_every_sequence_of_every_stage_comes_once_and_stages_do_not_mix(mix_store: Storage) -> None:
    batches = global_batches(mix_store, "pretrain", 8, 2, 2)
    assert [len(b["sequences"]) for b in batches] == [8, 8, 8, 1, 8, 3]
    assert sorted(torch.cat([b["sequences"] for b in batches[:4]]).tolist()) == list(range(25))
    assert sorted(torch.cat([b["sequences"] for b in batches[4:]]).tolist()) == list(range(11))


@within
@given(batch=st.integers(1, 12), world=st.integers(1, 3), stop=st.integers(0, 60), other_world=st.integers(1, 3))
def test_resumes_as_if_nothing_had_happened(
    mix_store: Storage, batch: int, world: int, stop: int, other_world: int
) -> None:
    whole = SequenceLoader(mix_store, "pretrain", batch, 0, world, 2)
    micro_batches = list(whole)
    first = SequenceLoader(mix_store, "pretrain", batch, 0, world, 2)
    first.skip(10_000, 10_001)  # beyond the end: changes nothing, and must survive the state
    seen = len(list(islice(first, stop)))
    state = first.state_dict()
    again = SequenceLoader(mix_store, "pretrain", batch, 0, world, 2, state)
    done = seen // whole.accumulation * whole.accumulation  # a step begun and not finished is done again
    for a, b in zip(micro_batches[done:], again, strict=True):
        for key in KEYS:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)
    assert again.skipped == [(10_000, 10_001)]
    elsewhere = SequenceLoader(mix_store, "pretrain", batch, 0, other_world, 3, state)
    assert elsewhere.step == done // whole.accumulation


def test_the_state_waits_for_the_whole_step(mix_store: Storage) -> None:
    loader = SequenceLoader(mix_store, "pretrain", 8, 0, 1, 2)
    stream = iter(loader)
    consumed = []
    for _ in range(8):
        next(stream)
        consumed.append(loader.state_dict()["consumed"])
    assert consumed == [0, 0, 0, 8, 8, 8, 8, 16]


def test_skipped_positions_do_not_come_and_the_rest_does(mix_store: Storage) -> None:
    every = [s for b in SequenceLoader(mix_store, "pretrain", 5) for s in b["sequences"].tolist() if s >= 0]
    loader = SequenceLoader(mix_store, "pretrain", 5)
    loader.skip(3, 9)
    loader.skip(20, 28)  # across the stages' border
    rest = [s for b in loader for s in b["sequences"].tolist() if s >= 0]
    assert rest == [s for i, s in enumerate(every) if not (3 <= i < 9 or 20 <= i < 28)]
    with pytest.raises(RecipeError):
        loader.skip(4, 4)


def test_refuses_another_plan_or_run_and_says_which(mix_store: Storage, fakes: Any, tmp_path: Path) -> None:
    state = SequenceLoader(mix_store, "pretrain", 8).state_dict()
    other = Storage(tmp_path)
    fakes.write_plan(other, "plan-b")
    with pytest.raises(StoreError, match="plan 'plan-a'; the plan given now is 'plan-b' .of the same shape, made from"):
        SequenceLoader(other, "pretrain", 8, state=state)
    fakes.write_plan(other, "plan-c", seed=6)
    with pytest.raises(StoreError, match="given now is 'plan-c' .seed 5 there, 6 here"):
        SequenceLoader(other, "pretrain", 8, state=state)
    with pytest.raises(StoreError, match="at position 99; this run has 36"):
        SequenceLoader(mix_store, "pretrain", 8, state=state | {"consumed": 99})
    with pytest.raises(StoreError, match="not the state of a loader of this Calumma .consumed: .*found -1"):
        SequenceLoader(mix_store, "pretrain", 8, state=state | {"consumed": -1})
    for wrong in ({"rank": 2, "world": 2}, {"micro_batch": 0}, {"prefetch": -1}):
        with pytest.raises(RecipeError, match="expected 0 <= rank < world"):
            SequenceLoader(mix_store, "pretrain", 8, **wrong)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="run 'pretrain'; the run given now is 'finetune'"):
        SequenceLoader(mix_store, "finetune", 8, state=state)


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


def test_a_changed_batch_is_refused_or_taken_over_from_there_on(mix_store: Storage) -> None:
    first = SequenceLoader(mix_store, "pretrain", 4)
    seen = [b["sequences"].tolist() for b in islice(first, 2)]
    state = first.state_dict()
    with pytest.raises(StoreError, match="from position 8 on the checkpoint's batch is 4; given now is 6"):
        SequenceLoader(mix_store, "pretrain", 6, state=state)
    again = SequenceLoader(mix_store, "pretrain", 6)
    again.load_state_dict(state, accept_batch=True)
    assert again.step == 2
    assert [len(b["sequences"]) for b in islice(again, 1)] == [6]
    assert again.step == 3
    third = SequenceLoader(mix_store, "pretrain", 6, state=again.state_dict())  # what is behind it needs no accepting
    assert (third.step, third.batch.phases) == (3, ((0, 4), (8, 6)))
    whole = [s for b in SequenceLoader(mix_store, "pretrain", 6) for s in b["sequences"].tolist() if s >= 0]
    rest = [s for b in third for s in b["sequences"].tolist() if s >= 0]
    assert [s for b in seen for s in b] == whole[:8]
    assert rest == whole[14:]


def test_a_run_goes_on_from_any_position(mix_store: Storage) -> None:
    whole = [s for b in SequenceLoader(mix_store, "pretrain", 1) for s in b["sequences"].tolist()]
    state = SequenceLoader(mix_store, "pretrain", 8).state_dict()
    for position in range(len(whole) + 1):
        loader = SequenceLoader(mix_store, "pretrain", 8, state=state | {"consumed": position})
        assert [s for b in loader for s in b["sequences"].tolist() if s >= 0] == whole[position:]
        assert loader.step == loader.steps


def test_a_state_set_anew_ends_what_is_being_iterated_over(mix_store: Storage) -> None:
    loader = SequenceLoader(mix_store, "pretrain", 4)
    stream = iter(loader)
    first, second = next(stream), next(stream)
    loader.skip(12, 14)
    with pytest.raises(RuntimeError, match="begin anew"):
        next(stream)
    with pytest.raises(RecipeError, match="skip.3, 8.: the run is at position 8"):
        loader.skip(3, 8)
    loader.skip(3, 9)
    assert loader.skipped == [(8, 9), (12, 14)]
    loader.delivered(second)
    with pytest.raises(RuntimeError, match="ends at position 4 came after position 8"):
        loader.delivered(first)


def through_workers(loader: SequenceLoader, workers: int) -> Iterator[Batch]:
    for micro in DataLoader(loader, batch_size=None, num_workers=workers):
        loader.delivered(micro)
        yield micro


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_of_a_data_loader_change_nothing(mix_store: Storage) -> None:
    expected = global_batches(mix_store, "pretrain", RAMP, 1, None)
    for world in (1, 2, 3, 8):
        for workers in (0, 1, 4):
            found = global_batches(mix_store, "pretrain", RAMP, world, 2, workers)
            assert len(found) == len(expected)
            for a, b in zip(expected, found, strict=True):
                for key in KEYS:
                    torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "then"), [(4, 0), (1, 4), (0, 1)])
def test_the_state_is_that_of_what_was_delivered_not_of_what_was_prefetched(
    mix_store: Storage, workers: int, then: int
) -> None:
    """Stopped at every micro-batch, with workers ahead; gone on with another number of workers and ranks."""
    whole = by_step(SequenceLoader(mix_store, "pretrain", RAMP, micro_batch=2))
    ends = [int(micros[-1]["consumed"]) for micros in whole]
    total = sum(map(len, whole))
    for stop in range(0, total + 1, 4):
        loader = SequenceLoader(mix_store, "pretrain", RAMP, micro_batch=2)
        stream = through_workers(loader, workers)
        for _ in islice(stream, stop):
            pass
        state = json.loads(json.dumps(loader.state_dict()))
        done = ends.index(state["consumed"]) + 1 if state["consumed"] else 0
        assert sum(map(len, whole[:done])) <= stop < sum(map(len, whole[: done + 1])) + (stop == total)
        again = SequenceLoader(mix_store, "pretrain", RAMP, micro_batch=2, state=state)
        rest = [micro["sequences"].tolist() for micro in through_workers(again, then)]
        assert rest == [micro["sequences"].tolist() for micros in whole[done:] for micro in micros]
