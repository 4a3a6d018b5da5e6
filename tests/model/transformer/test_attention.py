from __future__ import annotations

import pytest
import torch

from model.transformer.attention import (
    PADDING,
    HeadNorm,
    attend,
    attend_by_products,
    document_mask,
    rotary_table,
    rotate,
)


def qkv(dtype: torch.dtype) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, h, 9, 8, generator=g, dtype=torch.float32).to(dtype) for h in (4, 2, 2)]


@pytest.mark.parametrize("masked", [True, False])
def test_backends_agree(masked: bool) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(torch.float32))
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1, -1], [0] * 9])
    mask = document_mask(documents) if masked else None
    want, have = attend(q, k, v, mask), attend_by_products(q, k, v, mask)
    assert (want - have).abs().max() < 1e-6
    gradients = [torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (want, have)]
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(*gradients, strict=True))


def test_bfloat16_on_a_cpu_is_near_float32() -> None:
    want = attend(*qkv(torch.float32), None)
    have = attend(*qkv(torch.bfloat16), None)
    assert have.dtype == torch.bfloat16
    assert (want - have.float()).abs().max() < 0.05


def test_mask_is_causal_inside_documents_and_never_empty() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, PADDING, PADDING]])
    mask = document_mask(documents)[0, 0]
    want = torch.zeros(7, 7, dtype=torch.bool)
    for first, last in ((0, 2), (2, 5), (5, 7)):
        want[first:last, first:last] = torch.ones(last - first, last - first).tril().bool()
    assert torch.equal(mask, want)


def test_rotation_keeps_norms_and_depends_on_distance_only() -> None:
    x, y = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))

    def product(i: int, j: int) -> torch.Tensor:
        table_i, table_j = (rotary_table(torch.tensor([[p]]), 16, 10_000.0) for p in (i, j))
        return (rotate(x, table_i) * rotate(y, table_j)).sum()

    table = rotary_table(torch.tensor([[1234]]), 16, 10_000.0)
    assert rotate(x, table).norm() == pytest.approx(float(x.norm()), rel=1e-6)
    assert product(7, 3) == pytest.approx(float(product(104, 100)), abs=1e-4)
    assert product(7, 3) != pytest.approx(float(product(7, 5)), abs=1e-2)


def test_head_norm_gives_each_shard_its_own_weights() -> None:
    norm = HeadNorm(2, 8, 1e-5)
    with torch.no_grad():
        norm.weight[1], norm.bias[1] = 3.0, 0.5
    x = torch.randn(2, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    y = norm(x)
    plain = torch.nn.functional.layer_norm(x, (8,))
    assert (y[:, :, :3] - plain[:, :, :3]).abs().max() < 1e-5
    assert (y[:, :, 3:] - (3 * plain[:, :, 3:] + 0.5)).abs().max() < 1e-5
