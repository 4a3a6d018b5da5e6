"""Drawing the next id: temperature and top-p by row, from one uniform number a row.

Numbers come from a generator of each row's own, so what a row yields depends on its prompt and seed, not on which rows
it shares a batch with (up to the last bit of the logits).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RowRandom:
    """Uniform numbers for a batch: row r's stream depends on ``seeds[r]`` alone.

    They are drawn on the host, so that every device sees the same.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu", block: int = 256) -> None:
        self._generators = [torch.Generator().manual_seed(seed & 0x7FFF_FFFF_FFFF_FFFF) for seed in seeds]
        self._device, self._block = device, block
        self._drawn_BS = torch.empty(len(seeds), 0)
        self._next = 0

    def __call__(self) -> Tensor:
        """(B,) float32 in [0, 1): the next number of every row."""
        if self._next == self._drawn_BS.shape[1]:
            rows = [torch.rand(self._block, generator=g) for g in self._generators]
            self._drawn_BS = torch.stack(rows).to(self._device)
            self._next = 0
        uniform_B = self._drawn_BS[:, self._next]
        self._next += 1
        return uniform_B


def sample(logits_BV: Tensor, temperature_B: Tensor, top_p_B: Tensor, uniform_B: Tensor) -> Tensor:
    """One id a row by nucleus sampling.

    Args:
        logits_BV: (B, V) float; ``-inf`` where an id is masked. Every row needs one id that is not.
        temperature_B: (B,) float; 0 takes the likeliest id.
        top_p_B: (B,) float in (0, 1]: the smallest set of likeliest ids that holds this much probability is kept.
        uniform_B: (B,) float in [0, 1): where in the kept set's cumulative distribution the draw falls.

    Returns:
        (B,) int64 ids. Equal logits are ordered by id, so the result is the same on every run.
    """
    greedy_B = temperature_B <= 0
    scaled_BV = logits_BV.float() / torch.where(greedy_B, 1.0, temperature_B)[:, None]
    sorted_BV, order_BV = torch.sort(scaled_BV, dim=-1, descending=True, stable=True)
    p_BV = sorted_BV.softmax(-1)
    below_BV = p_BV.cumsum(-1) - p_BV  # probability of all likelier ids
    kept_BV = torch.where((below_BV < top_p_B[:, None]) & (p_BV > 0), p_BV, 0.0)
    cumulative_BV = kept_BV.cumsum(-1)
    target_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
    rank_B1 = (cumulative_BV <= target_B1).sum(-1, keepdim=True)
    # Rounding may carry the target past the last kept id: no id beyond it may ever be drawn.
    last_B1 = (kept_BV > 0).sum(-1, keepdim=True) - 1
    rank_B1 = torch.where(greedy_B[:, None], 0, torch.minimum(rank_B1, last_B1))
    return order_BV.gather(1, rank_B1)[:, 0]
