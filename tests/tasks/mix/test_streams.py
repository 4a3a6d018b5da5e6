from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import RecipeError
from tasks.mix.documents import Documents
from tasks.mix.streams import Stream

within = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def stream_of(documents: Documents, source: str = "emoji", seed: int = 0) -> Stream:
    return Stream(source, documents, np.flatnonzero((documents.source_N == source) & ~documents.held_out_N), seed)


def test_every_pass_is_every_document_once_in_another_order(documents: Documents) -> None:
    stream = stream_of(documents)
    index_K, occurrence_K = stream.documents(0, 3 * stream.per_pass)
    passes = index_K.reshape(3, -1)
    np.testing.assert_array_equal(occurrence_K, np.repeat([0, 1, 2], stream.per_pass))
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.sort(passes, axis=1)[[0, 0, 0]])
    assert not np.array_equal(passes[0], passes[1])
    assert not np.array_equal(stream_of(documents, seed=1).documents(0, 9)[0], passes[0][:9])


@within
@given(a=st.integers(0, 900), b=st.integers(0, 900), c=st.integers(0, 900))
def test_intervals_join(documents: Documents, a: int, b: int, c: int) -> None:
    stream = stream_of(documents)
    a, b, c = sorted((a, b, c))
    whole = np.stack(stream.documents(a, c))
    halves = np.concatenate([np.stack(stream.documents(a, b)), np.stack(stream.documents(b, c))], axis=1)
    np.testing.assert_array_equal(whole, halves)


@within
@given(start=st.integers(0, 900), quota=st.integers(0, 50_000))
def test_an_interval_ends_with_the_first_document_that_reaches_its_quota(
    documents: Documents, start: int, quota: int
) -> None:
    stream = stream_of(documents)
    stop, counted = stream.take(start, quota, documents.lengths)
    assert counted == documents.lengths(*stream.documents(start, stop)).sum() >= quota
    if stop > start:
        assert documents.lengths(*stream.documents(start, stop - 1)).sum() < quota
    else:
        assert quota == 0


def test_captions_change_the_lengths_from_pass_to_pass(documents: Documents) -> None:
    stream = stream_of(documents)
    lengths = documents.lengths(*stream.documents(0, 2 * stream.per_pass)).reshape(2, -1)
    assert lengths[0].sum() != lengths[1].sum()


def test_a_stream_of_nothing_says_so(documents: Documents) -> None:
    empty = Stream("void", documents, np.zeros(0, np.int64), 0)
    assert empty.take(0, 0, documents.lengths) == (0, 0)
    assert empty.documents(0, 0)[0].size == 0
    with pytest.raises(RecipeError, match="void: 5 tokens are wanted"):
        empty.take(0, 5, documents.lengths)
    texts = stream_of(documents, "text")
    with pytest.raises(RecipeError, match="no training documents with any"):
        texts.take(0, 5, documents.answer_tokens)


def test_groups_of_parts_are_gone_through_one_after_another(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.mix.streams.SHUFFLED_PARTS", 1)
    stream = stream_of(documents)
    index_K, _ = stream.documents(0, stream.per_pass)
    parts = documents.part_N[index_K]
    assert np.count_nonzero(np.diff(parts)) == 2
