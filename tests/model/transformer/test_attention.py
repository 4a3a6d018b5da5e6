from __future__ import annotations

import pytest
import torch

from model.transformer.attention import HeadNorm, rotary_table, rotate


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
