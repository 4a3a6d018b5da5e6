from __future__ import annotations

import pytest
import torch

from model.evaluation import nearest
from model.evaluation.nearest import distances, rank_of


def test_distances_are_root_mean_square_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (3, 2, 2, 3), dtype=torch.uint8, generator=generator)
    b = torch.randint(0, 256, (7, 2, 2, 3), dtype=torch.uint8, generator=generator)
    expected = ((a[:, None].double() - b[None].double()) ** 2).mean((2, 3, 4)).sqrt()
    assert torch.allclose(distances(a, b).double(), expected, atol=1e-3)
    monkeypatch.setattr(nearest, "BLOCK_ELEMENTS", 1)  # a reference a block
    assert torch.allclose(distances(a, b).double(), expected, atol=1e-3)


def test_a_copy_is_at_distance_zero_exactly() -> None:
    a = torch.randint(0, 256, (5, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert distances(a, a).diagonal().tolist() == [0.0] * 5


def test_rank_counts_what_is_strictly_nearer() -> None:
    away = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0], [1.0, 2.0, 3.0]])
    assert rank_of(away, torch.tensor([0, 1, 2])).tolist() == [3, 1, 3]
