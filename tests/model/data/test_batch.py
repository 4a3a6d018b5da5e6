from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data.batch import IGNORE, make_batch
from model.transformer.backends import document_mask
from model.vocabulary import BOS, EOS, PAD, Vocabulary

V = Vocabulary(image_codes=16, text_start=32, size=512)


def test_batches_by_hand(fakes: Any) -> None:
    v = fakes.vocabulary
    boi, a, b, eoi = v.boi, 4, 19, v.eoi
    tokens = np.array([[BOS, boi, a, b, eoi, 40, EOS, BOS, 41, EOS, PAD, PAD]], np.uint16)
    starts = np.zeros((1, 12), np.bool_)
    starts[0, [0, 7, 10]] = True
    batch = make_batch(tokens, starts, None, [3], v)
    none = IGNORE
    assert batch["labels"].tolist() == [[boi, a, b, eoi, 40, EOS, none, 41, EOS, none, none, none]]
    assert batch["documents"].tolist() == [[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, -1, -1]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0, 1]]
    assert batch["image"].tolist() == [[True] * 4 + [False] * 8]
    assert batch["tokens"].tolist() == tokens.astype(int).tolist()
    assert batch["modality"].tolist() == [[False] + [True] * 4 + [False] * 7]
    assert batch["loss_mask"].tolist() == [[True] * 6 + [False] + [True] * 2 + [False] * 3]
    assert batch["cu_seqlens"].tolist() == [0, 7, 10, 12, 12]  # room for 12 / 16 a sequence, so 1, then 2, then 4
    assert batch["max_seqlen"].item() == 7
    assert {name: value.dtype for name, value in batch.items()} == {
        **dict.fromkeys(("tokens", "labels", "positions", "sequences"), torch.int64),
        **dict.fromkeys(("documents", "cu_seqlens", "max_seqlen"), torch.int32),
        **dict.fromkeys(("loss_mask", "image", "modality"), torch.bool),
    }
    loss = np.zeros((1, 12), np.bool_)
    loss[0, [5, 6, 7, 10]] = True  # 7 begins a document and 10 is padding: neither can be predicted
    assert make_batch(tokens, starts, loss, [3], v)["labels"].tolist() == [[none] * 4 + [40, EOS] + [none] * 6]


@st.composite
def stored(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Rows of documents, pieces of documents and paddings, of any ids."""
    b, t = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    tokens = rng.integers(2, V.size, (b, t)).astype(np.uint16)
    tokens[tokens == PAD] = BOS
    starts = rng.random((b, t)) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    starts[:, 0] = True
    for row in range(b):
        padding = draw(st.integers(0, t))
        if padding:
            tokens[row, t - padding :] = PAD
            starts[row, t - padding :] = False
            starts[row, t - padding] = True
    return tokens, starts, rng.random((b, t)) < 0.5 if draw(st.booleans()) else None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stored=stored(), segments=st.one_of(st.none(), st.integers(1, 30)))
def test_equals_the_definition_position_by_position(stored: tuple[Any, Any, Any], segments: int | None) -> None:
    tokens, starts, loss = stored
    b, t = tokens.shape
    batch = make_batch(tokens, starts, loss, np.arange(b), V, segments)
    found = {name: value.tolist() for name, value in batch.items()}
    segment, begins = -1, []
    for row in range(b):
        document = -1
        for at in range(t):
            token, last = int(tokens[row, at]), at == t - 1
            if starts[row, at]:
                segment, document, first = segment + 1, document + 1, at
                begins.append(row * t + at)
            counts = not last and not starts[row, at + 1] and tokens[row, at + 1] != PAD
            counts = counts and (loss is None or bool(loss[row, at + 1]))
            label = int(tokens[row, at + 1]) if counts else IGNORE
            assert found["tokens"][row][at] == token
            assert found["labels"][row][at] == label
            assert found["loss_mask"][row][at] == counts
            assert found["image"][row][at] == (4 <= label <= V.boi)
            assert found["modality"][row][at] == (4 <= token <= V.boi)
            assert found["documents"][row][at] == (-1 if token == PAD else document)
            assert found["positions"][row][at] == at - first
    room = b * (segments or max(1, t // 16))
    borders = found["cu_seqlens"]
    assert borders[: len(begins)] == begins
    assert set(borders[len(begins) :]) == {b * t}
    assert (len(borders) - 1) % room == 0
    assert len(borders) - 1 == room or len(begins) > (len(borders) - 1) // 2
    assert found["max_seqlen"] == max(np.diff([*begins, b * t]))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stored=stored())
def test_cu_seqlens_and_documents_name_the_same_attention(stored: tuple[Any, Any, Any]) -> None:
    """What varlen attention takes from the borders is what the mask says, on the rows laid end to end."""
    tokens, starts, loss = stored
    b, t = tokens.shape
    batch = make_batch(tokens, starts, loss, np.arange(b), V)
    mask = document_mask(batch["documents"])[:, 0]
    borders = batch["cu_seqlens"].tolist()
    flat = torch.zeros(b * t, b * t, dtype=torch.bool)
    for begin, end in pairwise(borders):
        flat[begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
    assert torch.equal(flat, torch.block_diag(*mask).bool())
