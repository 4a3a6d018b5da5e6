from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.transformer import loss as module
from model.transformer.loss import IGNORE, token_loss


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
)
def test_equals_plain_cross_entropy_and_its_gradients(
    b: int, t: int, v: int, z: float, chunk: int, seed: int, weighted: bool, large: bool
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
