from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.batch import make_batch
from model.transformer import loss as module
from model.transformer.loss import IGNORE, token_loss
from model.vocabulary import BOS, EOS, PAD, Vocabulary


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, z: float, weights: torch.Tensor | None
) -> torch.Tensor:
    logits = (hidden @ weight.T).flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="none")
    loss = (nll + z * logits.logsumexp(-1).square())[labels.flatten() != IGNORE]
    return loss.sum() if weights is None else (loss * weights.flatten()[labels.flatten() != IGNORE]).sum()


@settings(deadline=None, max_examples=40)
@given(
    b=st.integers(1, 3),
    t=st.integers(1, 40),
    v=st.integers(2, 50),
    z=st.sampled_from([0.0, 1e-5, 0.1]),
    chunk=st.integers(1, 1000),
    seed=st.integers(0, 99),
    weighted=st.booleans(),
    large=st.booleans(),
    piece=st.integers(1, 300),
)
def test_equals_plain_cross_entropy_and_its_gradients(
    b: int, t: int, v: int, z: float, chunk: int, seed: int, weighted: bool, large: bool, piece: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(b, t, 8, generator=g, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(v, 8, generator=g, dtype=torch.float32, requires_grad=True)
    labels = torch.randint(0, v, (b, t), generator=g)
    labels[torch.rand(b, t, generator=g) < 0.3] = IGNORE
    weights = torch.rand(b, t, generator=g) if weighted else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.CHUNK_ELEMENTS, "cpu", chunk)
        patch.setattr(module, "LARGE_WEIGHT", 0 if large else 1 << 22)
        patch.setattr(module, "LEAST_ROWS", 7)
        patch.setitem(module.PIECE_ELEMENTS, "cpu", piece)
        have = token_loss(hidden, weight, labels, z, weights)
    want = plain(hidden, weight, labels, z, weights)
    assert have.total.item() == pytest.approx(want.item(), rel=1e-4, abs=1e-4)
    mine = torch.autograd.grad(have.total * 0.5, (hidden, weight))
    theirs = torch.autograd.grad(want * 0.5, (hidden, weight))
    assert all(torch.allclose(m, w, rtol=1e-4, atol=1e-5) for m, w in zip(mine, theirs, strict=True))
    assert have.index_N.tolist() == (labels.flatten() != IGNORE).nonzero().squeeze(1).tolist()


def test_large_logits_stay_finite() -> None:
    hidden, weight = torch.full((1, 3, 4), 1e4), torch.eye(6, 4) * 1e4
    out = token_loss(hidden, weight, torch.tensor([[0, 5, 2]]), 1e-5)
    assert torch.isfinite(out.nll_N).all()
    assert torch.isfinite(out.total)


def test_nothing_counted_costs_nothing() -> None:
    hidden = torch.randn(1, 3, 4, requires_grad=True)
    out = token_loss(hidden, torch.randn(6, 4), torch.full((1, 3), IGNORE))
    out.total.backward()
    assert out.total.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_bfloat16_gradients_are_near_float32_ones() -> None:
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 50, 16, generator=g), torch.randn(40, 16, generator=g) * 0.2
    labels = torch.randint(0, 40, (2, 50), generator=g)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        h, w = (x.to(dtype).detach().requires_grad_() for x in (hidden, weight))
        found.append([x.float() for x in torch.autograd.grad(token_loss(h, w, labels, 1e-5).total, (h, w))])
    assert all((a - b).norm() < 0.02 * a.norm() for a, b in zip(*found, strict=True))


def test_bfloat16_keeps_the_gradient_of_the_z_loss() -> None:
    """It is a thousandth of the softmax, less than bf16 tells apart in one number: on average over many it is there."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 200, 16, generator=g), torch.randn(500, 16, generator=g) * 0.2
    labels = torch.randint(0, 500, (4, 200), generator=g)
    parts = []
    for dtype in (torch.float32, torch.bfloat16):
        h, w = (x.to(torch.bfloat16).to(dtype).requires_grad_() for x in (hidden, weight))
        with_it, without = (torch.autograd.grad(token_loss(h, w, labels, z).total, h)[0].float() for z in (1e-4, 0.0))
        parts.append(with_it - without)
    kept = (parts[0] * parts[1]).sum() / parts[0].square().sum()
    assert 0.9 < kept.item() < 1.1


V = Vocabulary(image_codes=16, text_start=32, size=300)


def packed() -> dict[str, torch.Tensor]:
    """Two documents and padding in a row, as the loader makes them: a picture's tokens and text, all ids different."""
    tokens = np.array([[BOS, V.boi, 4, 9, 17, V.eoi, 40, 41, EOS, 42, 43, 44, PAD, PAD]], np.uint16)
    starts = np.zeros(tokens.shape, np.bool_)
    starts[0, [0, 9, 12]] = True
    return make_batch(tokens, starts, None, [0], V)


def knowing(batch: dict[str, torch.Tensor], ahead: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and an output matrix of a model that is sure of the token ``ahead`` positions on."""
    hidden = torch.nn.functional.one_hot(batch["tokens"].roll(-ahead, 1), V.size).float()
    return hidden, torch.eye(V.size) * 50


def test_labels_are_shifted_once() -> None:
    """A model that knows the next token loses nothing; one that copies its input, or knows the one after, loses all.

    Were labels shifted twice, or not at all, one of the others would be the one without a loss.
    """
    batch = packed()
    found = {n: token_loss(*knowing(batch, n), batch["labels"]) for n in (0, 1, 2)}
    count = len(found[1].nll_N)
    assert count == 8 + 2
    assert found[1].total.item() < 1e-3
    assert found[0].nll_N.min() > 49
    assert found[2].nll_N.min() > 49


def test_no_document_predicts_the_next() -> None:
    batch = packed()
    loss = token_loss(*knowing(batch, 1), batch["labels"])
    # The last token of the first document, that of the second, and the padding predict nothing.
    assert loss.index_N.tolist() == [*range(8), 9, 10]


def test_by_modality() -> None:
    """What is counted for pictures are their tokens as labels: begin, codes, end; together it is everything."""
    batch = packed()
    hidden = torch.randn(1, 14, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(V.size, 8, generator=torch.Generator().manual_seed(1))
    loss = token_loss(hidden, weight, batch["labels"], 0.1)
    image_N = batch["image"].flatten()[loss.index_N]
    assert image_N.tolist() == [True] * 5 + [False] * 5
    logits = (hidden @ weight.T)[0]
    nll = torch.nn.functional.cross_entropy(logits[:5], batch["tokens"][0, 1:6], reduction="sum")
    assert float(loss.nll_N[image_N].sum()) == pytest.approx(float(nll), rel=1e-5)
    both = loss.nll_N.sum() + 0.1 * loss.log_z_N.square().sum()
    assert float(loss.total) == pytest.approx(float(both), rel=1e-5)


def test_z_is_of_the_whole_vocabulary_and_only_where_a_label_counts() -> None:
    """Ids that are never a label, reserved ones and pictures' in a text, belong to Z as well."""
    batch = packed()
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 14, 8, generator=g), torch.randn(V.size, 8, generator=g)
    loss = token_loss(hidden, weight, batch["labels"], 1e-5)
    log_z = (hidden @ weight.T).double().logsumexp(-1).flatten()
    assert torch.allclose(loss.log_z_N.double(), log_z[loss.index_N], atol=1e-5)
    elsewhere = hidden.clone()
    elsewhere[0, 8] = 1e3  # the end of the first document: nothing is predicted there
    assert torch.equal(token_loss(elsewhere, weight, batch["labels"], 1e-5).total, loss.total)
    weight[V.size - 1] *= 100  # an id that occurs nowhere
    assert (token_loss(hidden, weight, batch["labels"]).log_z_N - loss.log_z_N).abs().max() > 1
