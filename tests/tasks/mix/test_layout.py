from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.vocabulary import BOS, EOS, Vocabulary
from tasks.mix.documents import Documents
from tasks.mix.layout import cuts, merge
from tasks.mix.streams import Stream

V = Vocabulary(image_codes=16, text_start=32, size=600)
PICTURE = [V.boi, *range(4, 14), V.eoi]
segments = st.lists(st.one_of(st.just(PICTURE), st.integers(0, 50).map(lambda n: [40] * n)), max_size=12)


@settings(deadline=None)
@given(segments=segments, length=st.integers(len(PICTURE) + 2, 40))
def test_pieces_join_to_the_document_and_none_holds_half_a_picture(segments: list[list[int]], length: int) -> None:
    ids = np.array([BOS, *(i for segment in segments for i in segment), EOS], np.uint16)
    found = list(cuts(ids, V, length))
    assert found[0][0] == 0
    assert found[-1][1] == len(ids)
    assert all(a[1] == b[0] for a, b in pairwise(found))
    for first, stop, image in found:
        piece = ids[first:stop]
        assert 0 < len(piece) <= length
        begins, ends = np.flatnonzero(piece == V.boi), np.flatnonzero(piece == V.eoi)
        np.testing.assert_array_equal(ends - begins, len(PICTURE) - 1)
        assert image == len(begins) * len(PICTURE)
    for first, stop, _ in found[:-1]:  # as long as possible: short only before a picture
        assert stop - first == length or ids[stop] == V.boi


def test_any_stretch_of_the_merged_order_is_the_mixture(documents: Documents) -> None:
    names = ["emoji", "text", "stories"]
    streams = [Stream(n, documents, np.flatnonzero(documents.source_N == n), 0) for n in names]
    uses = [s.documents(0, count) for s, count in zip(streams, (900, 300, 450), strict=True)]
    totals = {n: int(documents.lengths(*u).sum()) for n, u in zip(names, uses, strict=True)}
    index_K, occurrence_K, share_K = merge(uses, documents)
    assert (np.diff(share_K) >= 0).all()
    assert sorted(zip(index_K.tolist(), occurrence_K.tolist(), strict=True)) == sorted(
        (i, k) for u in uses for i, k in zip(u[0].tolist(), u[1].tolist(), strict=True)
    )
    lengths = documents.lengths(index_K, occurrence_K)
    source_K = documents.source_N[index_K]
    for begin in (0.0, 0.35, 0.8):
        inside = (share_K >= begin) & (share_K < begin + 0.2)
        for name, total in totals.items():
            mine = int(lengths[inside & (source_K == name)].sum())
            assert abs(mine - 0.2 * total) <= lengths[source_K == name].max()
