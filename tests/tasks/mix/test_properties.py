"""What holds for any recipe of a mixture, checked against the documents as the document store has them."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import count, pairwise
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from infra.store.sequences import SequenceReader
from model.vocabulary import PAD
from tasks.documents.captions import realise
from tests.tasks.mix.reading import Contexts, Documents, build, rows_of, spans_of

NUMBERS = count(1000)
PICTURE = 18
weight = st.floats(0.3, 1)
mixtures = st.fixed_dictionaries(
    {
        "tokens": st.integers(50_000, 100_000),
        "sequence_length": st.sampled_from([24, 31, 64, 200]),
        "window": st.integers(1, 1000),
        "slice_sequences": st.integers(100, 1000),
        "file_sequences": st.integers(50, 300),
        "stages": st.tuples(weight, weight, weight, st.floats(0.3, 0.7), st.sampled_from([0.0, 0.25, 0.5, 0.9])).map(
            lambda w: [
                {"name": "one", "share": w[3], "weights": {"emoji": w[0], "text": w[1], "stories": w[2]}},
                {"name": "two", "share": 1 - w[3], "weights": {"quality": w[2], "text": w[0]}, "earlier": w[4]},
            ]
        ),
    }
)


@settings(
    max_examples=10,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(mix=mixtures)
def test_any_mixture_is_what_was_planned(context_of: Contexts, known: Documents, mix: dict[str, Any]) -> None:
    context = context_of(next(NUMBERS), **mix)
    plan, rows, length = build(context, workers=0), rows_of(context), mix["sequence_length"]
    assert sum(i.quota for stage in plan.stages for i in stage.intervals) == mix["tokens"]
    used: dict[tuple[str, int], list[int]] = defaultdict(list)
    stops: dict[str, int] = {}
    for stage in plan.stages:
        reader = SequenceReader(context.store(), stage.folder)
        expected = np.full((stage.sequences, length), PAD, np.uint16)
        stretches: dict[tuple[str, int, int], list[tuple[int, int]]] = defaultdict(list)
        tokens, longest = Counter[str](), Counter[str]()
        for span in spans_of(context.store(), stage):
            part, row, first, size = span["part"], span["row"], span["first_token"], span["length"]
            ids = realise(rows[part][row], span["occurrence"], context.recipe.seed)
            here = expected[span["sequence"], span["offset"] : span["offset"] + size]
            assert (here == PAD).all()  # nothing lies over anything else
            here[:] = ids[first : first + size]
            stretches[part, row, span["occurrence"]].append((first, size))
            tokens[span["source"]] += size
            longest[span["source"]] = max(longest[span["source"]], len(ids))
        written, _, _ = reader.read(range(stage.sequences))
        np.testing.assert_array_equal(written, expected)

        # Every occurrence's tokens are there once; what fits is whole, and so is every picture.
        for (part, row, occurrence), found in stretches.items():
            size = len(realise(rows[part][row], occurrence, context.recipe.seed))
            pieces = sorted(found)
            assert all(a + n == b for (a, n), (b, _) in pairwise([*pieces, (size, 0)]))
            assert pieces[0][0] == 0
            assert len(pieces) == 1 or size > length
            used[part, row].append(occurrence)
        begins, ends = (
            np.flatnonzero(written == i) for i in (context.recipe.vocabulary.boi, context.recipe.vocabulary.eoi)
        )
        np.testing.assert_array_equal(ends - begins, PICTURE - 1)
        np.testing.assert_array_equal(begins // length, ends // length)

        # The realised mixture is the plan, but for the document that each source's quota ends in.
        for i in stage.intervals:
            assert 0 <= tokens[i.stream] - i.quota < longest[i.stream]
            wished = i.quota / sum(j.quota for j in stage.intervals)
            realised = tokens[i.stream] / tokens.total()
            assert abs(realised - wished) <= max(0.001, sum(longest.values()) / tokens.total())
            assert i.start == stops.get(i.stream, 0)
            stops[i.stream] = i.stop

    # Of the documents that may be used, each is used once before any is used again, and none a time too many.
    for source, stop in stops.items():
        own = [key for key, d in known.items() if d.source == source and not d.held_out]
        times = [len(used[key]) for key in own]
        assert sum(times) == stop
        assert max(times) - min(times) <= 1
        assert all(sorted(used[key]) == list(range(n)) for key, n in zip(own, times, strict=True))
    assert not any(known[key].held_out for key in used)
