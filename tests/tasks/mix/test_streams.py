from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.mix.group import HELD_OUT, PRETRAIN
from tasks.mix.packings import Streams
from tasks.mix.streams import Stream, Totals, in_order
from tests.tasks.mix.reading import Known

within = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Place = tuple[str, int, int]
"""Part, row, occurrence."""


def stream_of(streams: Streams, source: str = "emoji", key: str = PRETRAIN) -> Stream:
    return streams.stream(source, key, [source])


def documents(streams: Streams, stream: Stream, start: int, stop: int) -> list[tuple[Place, Totals]]:
    """The stream's documents one by one, from its runs."""
    found = []
    for run in stream.runs(start, stop):
        group = streams.load(run.group)
        index_K = in_order(group, stream.key, streams.recipe.seed, stream.name, run.number, run.turn)
        for number, index in enumerate(index_K.tolist(), run.first):
            if start <= number < stop:
                place = (group.parts[group.part_N[index]], int(group.row_N[index]), run.turn)
                length = int(group.lengths(np.array([index]), run.turn)[0])
                totals = Totals(length, int(group.image_tokens_N[index]), int(group.answer_tokens_N[index]))
                found.append((place, totals))
    return found


def test_every_pass_is_every_document_once_in_another_order(
    streams: Streams, known: dict[tuple[str, int], Known]
) -> None:
    stream = stream_of(streams)
    own = sorted(k for k, d in known.items() if d.source == "emoji" and not d.held_out)
    assert stream.per_pass == len(own)
    found = [place for place, _ in documents(streams, stream, 0, 3 * len(own))]
    passes = [found[n * len(own) : (n + 1) * len(own)] for n in range(3)]
    for number, places in enumerate(passes):
        assert {turn for _, _, turn in places} == {number}
        assert sorted((part, row) for part, row, _ in places) == own
    assert [p[:2] for p in passes[0]] != [p[:2] for p in passes[1]]
    held = stream_of(streams, key=HELD_OUT)
    assert held.per_pass == sum(d.source == "emoji" and d.held_out for d in known.values())


def test_millions_of_passes_are_not_gone_through_one_by_one(streams: Streams) -> None:
    stream = stream_of(streams)
    for quota in (10**9, 10**9 + 1, 10**15):
        stop = stream.take(0, quota, "tokens")
        assert stream.prefix(stop - 1).tokens < quota <= stream.prefix(stop).tokens
    passes = [stream.tokens_of_pass(n) for n in range(25)]
    assert [stream.prefix(n * stream.per_pass).tokens for n in range(26)] == [sum(passes[:n]) for n in range(26)]


def test_groups_are_gone_through_one_after_another(streams: Streams) -> None:
    parts = [place[0] for place, _ in documents(streams, stream_of(streams), 0, stream_of(streams).per_pass)]
    assert sum(a != b for a, b in pairwise(parts)) == 2


def test_lengths_are_those_of_the_captions_whose_turn_it_is(
    streams: Streams, known: dict[tuple[str, int], Known]
) -> None:
    from tasks.documents.captions import caption_number

    for (part, row, turn), totals in documents(streams, stream_of(streams), 0, 900):
        d = known[part, row]
        assert totals.tokens == d.lengths[caption_number(d.sample_id, turn, streams.recipe.seed, len(d.lengths))]


@within
@given(source=st.sampled_from(["emoji", "text", "chat"]), start=st.integers(0, 900), more=st.integers(0, 900))
def test_sums_from_the_groups_are_those_of_the_documents(streams: Streams, source: str, start: int, more: int) -> None:
    stream = stream_of(streams, source)
    one_by_one = sum((totals for _, totals in documents(streams, stream, start, start + more)), Totals())
    assert stream.prefix(start + more) - stream.prefix(start) == one_by_one


@within
@given(source=st.sampled_from(["emoji", "text"]), start=st.integers(0, 900), quota=st.integers(0, 50_000))
def test_an_interval_ends_with_the_first_document_that_reaches_its_quota(
    streams: Streams, source: str, start: int, quota: int
) -> None:
    stream = stream_of(streams, source)
    stop = stream.take(start, quota, "tokens")
    taken = (stream.prefix(stop) - stream.prefix(start)).tokens
    assert taken >= quota
    if stop > start:
        assert (stream.prefix(stop - 1) - stream.prefix(start)).tokens < quota
    else:
        assert quota == 0


@within
@given(start=st.integers(0, 2000), more=st.integers(1, 900))
def test_runs_say_what_lies_before_them(streams: Streams, start: int, more: int) -> None:
    stream = stream_of(streams)
    for run in stream.runs(start, start + more):
        assert run.tokens == (stream.prefix(run.first) - stream.prefix(start)).tokens


def test_a_stream_of_nothing(streams: Streams) -> None:
    empty = streams.stream("void", PRETRAIN, [])
    assert (empty.per_pass, empty.supply, empty.runs(0, 0)) == (0, Totals(), [])
    assert empty.take(0, 0, "tokens") == 0
    with pytest.raises(ValueError, match="void: 5 tokens"):
        empty.take(0, 5, "tokens")
    with pytest.raises(ValueError, match="text: 5 answer_tokens"):
        stream_of(streams, "text").take(0, 5, "answer_tokens")
