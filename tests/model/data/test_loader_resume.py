"""Stopping and going on: from the state alone, anywhere, with other ranks and workers, the stream stays the same."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from infra.errors import RecipeError, StoreError
from infra.storage import Storage
from model.data.loader import SequenceLoader
from model.data.steps import BatchSizes
from tests.model.data.reading import RAMP, by_step, global_batches, same, through_workers

SIZES = st.tuples(st.integers(1, 12), st.dictionaries(st.integers(1, 40), st.integers(1, 9), max_size=3)).map(
    lambda drawn: BatchSizes.of(drawn[0], sorted(drawn[1].items()))
)
GAPS = st.lists(st.tuples(st.integers(0, 35), st.integers(1, 12)).map(lambda t: (t[0], t[0] + t[1])), max_size=3)
WORLDS = st.sampled_from([1, 2, 3, 8])
MICRO = st.one_of(st.none(), st.integers(1, 4))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=SIZES, gaps=GAPS, more=GAPS, worlds=st.tuples(WORLDS, WORLDS), micro=MICRO, stop=st.integers(0, 60))
def test_stopped_anywhere_and_resumed_it_is_the_uninterrupted_stream(
    mix_store: Storage,
    sizes: BatchSizes,
    gaps: list[tuple[int, int]],
    more: list[tuple[int, int]],
    worlds: tuple[int, int],
    micro: int | None,
    stop: int,
) -> None:
    """Across the stages' border at 25, a growing batch, and intervals skipped from the start and at the stop."""
    planned = SequenceLoader(mix_store, "pretrain", sizes)
    for gap in gaps:
        planned.skip(*gap)
    start = json.loads(json.dumps(planned.state_dict()))
    whole = global_batches(mix_store, "pretrain", sizes, 1, None, state=start)
    stopped = SequenceLoader(mix_store, "pretrain", sizes, worlds[0] - 1, worlds[0], micro, start)
    for _ in islice(stopped, stop):
        pass
    state = json.loads(json.dumps(stopped.state_dict()))
    assert same(global_batches(mix_store, "pretrain", sizes, worlds[1], 3, state=state), whole[stopped.step :])
    for gap in more:  # what is behind stays, and what lies ahead is as if it had been skipped from the start
        if gap[1] > stopped.consumed:
            stopped.skip(*gap)
    expected = global_batches(mix_store, "pretrain", sizes, 1, None, state=start | {"skipped": stopped.skipped})
    assert same(expected[: stopped.step], whole[: stopped.step])
    assert same(
        global_batches(mix_store, "pretrain", sizes, worlds[1], micro, state=stopped.state_dict()),
        expected[stopped.step :],
    )


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


def test_what_a_recipe_passes_over_is_left_out_or_behind(mix_store: Storage) -> None:
    loader = SequenceLoader(mix_store, "pretrain", 5, prefetch=0)
    stream = iter(loader)
    next(stream), next(stream)
    place = loader.place
    assert place[:2] == ("pretrain", loader.stage)
    assert place.folder.startswith(mix_store.root)
    assert place[3:] == (5, 10)
    loader.pass_over([(0, 7), (12, 14), (20, 22)])
    assert loader.skipped == [(12, 14), (20, 22)]  # the first one is behind
    every = [s for b in SequenceLoader(mix_store, "pretrain", 5) for s in b["sequences"].tolist()]
    assert next(iter(loader))["sequences"].tolist() == [every[p] for p in (10, 11, 14, 15, 16)]
    assert loader.place[3:] == (10, 17)
    with pytest.raises(RecipeError, match=r"pretrain.skip: \[30, 37\]; the run has 36 positions"):
        loader.pass_over([(30, 37)])


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
    with pytest.raises(RuntimeError, match="micro-batch 0 of step 0, .* came where 0 of step 2 .*position 8"):
        loader.delivered(first)


def test_a_micro_batch_that_is_out_of_turn_is_refused_inside_a_step_too(mix_store: Storage) -> None:
    made = list(SequenceLoader(mix_store, "pretrain", 8, micro_batch=2))
    assert [(int(m["step"]), int(m["micro"])) for m in made[:6]] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    for delivered in range(8):
        for wrong in set(range(len(made))) - {delivered, max(0, delivered - 1), delivered // 4 * 4}:
            loader = SequenceLoader(mix_store, "pretrain", 8, micro_batch=2)
            for micro in made[:delivered]:
                loader.delivered(micro)
                loader.delivered(micro)  # again, as a loop over the loader itself would have it
            with pytest.raises(RuntimeError, match=rf"micro-batch {wrong % 4} of step .*came where {delivered % 4} of"):
                loader.delivered(made[wrong])
            assert loader.consumed == delivered // 4 * 8
    for micro in [made[4], made[5], *made[4:8]]:  # step 1 begins anew, as where it is iterated over anew
        loader.delivered(micro)
    assert loader.consumed == 16


def test_a_step_begins_anew_behind_its_first_micro_batch(mix_store: Storage) -> None:
    for skip in (False, True):
        loader = SequenceLoader(mix_store, "pretrain", 8, micro_batch=2)
        next(iter(loader))
        if skip:
            loader.skip(20, 24)
        for micro in islice(DataLoader(loader, batch_size=None), 4):
            loader.delivered(micro)
        assert loader.consumed == 8


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_that_persist_begin_where_they_first_began_and_are_refused(mix_store: Storage) -> None:
    loader = SequenceLoader(mix_store, "pretrain", 8, micro_batch=2)
    workers = DataLoader(loader, batch_size=None, num_workers=1, persistent_workers=True)
    for micro in islice(workers, 5):
        loader.delivered(micro)
    with pytest.raises(RuntimeError, match="persistent_workers would begin where it first began"):
        loader.delivered(next(iter(workers)))


def test_a_run_of_which_everything_is_skipped_has_no_steps(mix_store: Storage) -> None:
    loader = SequenceLoader(mix_store, "pretrain", 8, micro_batch=2)
    loader.skip(0, 36)
    assert (loader.steps, loader.step, loader.accumulation, list(loader)) == (0, 0, 4, [])


def test_refuses_intervals_that_are_none_and_other_epochs(mix_store: Storage) -> None:
    state = SequenceLoader(mix_store, "pretrain", 8).state_dict()
    for wrong in ([20, 10], [-20, 10], [4, 4]):
        with pytest.raises(StoreError, match=r"skipped: .*is no interval; expected 0 <= start < stop"):
            SequenceLoader(mix_store, "pretrain", 8, state=state | {"skipped": [wrong]})
    three = SequenceLoader(mix_store, "finetune", 8, epochs=3).state_dict()
    assert SequenceLoader(mix_store, "finetune", 8, epochs=3, state=three).steps == 6
    with pytest.raises(StoreError, match="another finetune run of this plan .sequences of epoch-2 9 there, None here"):
        SequenceLoader(mix_store, "finetune", 8, epochs=2, state=three)
    with pytest.raises(StoreError, match="no sequences of epoch-3 there, 10 here"):
        SequenceLoader(mix_store, "finetune", 8, epochs=4, state=three)
    with pytest.raises(RecipeError, match="epochs: 0; expected at least 1"):
        SequenceLoader(mix_store, "finetune", 8, epochs=0)


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
