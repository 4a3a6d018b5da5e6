"""The vector quantiser, and k-means for starting and repairing its codebook.

Nearest neighbour by L2, gradients straight through (van den Oord et al., 2017). Shapes: N vectors, D their width,
K entries of the codebook.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Bytes that :func:`nearest` holds distances in, twice: on a CPU what stays in its cache, on a GPU what fills it."""

DRAWS = 1024
"""Rounds, at most or nearly, in which :func:`sample_far` draws."""


def nearest(x_ND: Tensor, entries_KD: Tensor) -> Tensor:
    """Index (N,) int64 of each vector's nearest entry; of equally near ones the first.

    Never all distances at once: as many vectors' as fit into :data:`MEMORY`, at least one vector's (4·K bytes).
    """
    square_K = entries_KD.square().sum(1)
    rows = _rows(x_ND, max(entries_KD.shape))
    found = []
    for x_nD in torch.split(x_ND, rows):
        # |x|² changes no order, but it is part of the reference's sum, (|x|² + |e|²) - 2xe, and so of its rounding.
        distance_nK = x_nD.square().sum(1, keepdim=True) + square_K
        found.append(distance_nK.sub_(x_nD @ entries_KD.T, alpha=2).argmin(1))
    return torch.cat(found)


def _rows(x_ND: Tensor, width: int) -> int:
    """How many rows of ``width`` float32 values :data:`MEMORY` holds, at least one."""
    return max(1, MEMORY.get(x_ND.device.type, MEMORY["cuda"]) // (4 * max(1, width)))


def _distance(x_ND: Tensor, entries_KD: Tensor) -> Tensor:
    """Squared distance (N,) of each vector to its nearest entry: exactly 0 to its equal."""
    parts = torch.split(x_ND, max(1, _rows(x_ND, x_ND.shape[1]) // 4))
    return torch.cat([(x_nD - entries_KD[nearest(x_nD, entries_KD)]).square().sum(1) for x_nD in parts])


class VectorQuantizer(nn.Module):
    """A codebook of K vectors."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def codes(self, z_BDHW: Tensor) -> Tensor:
        """Codes (B, H·W) int64 in raster order."""
        z_ND = z_BDHW.float().permute(0, 2, 3, 1).reshape(-1, z_BDHW.shape[1])
        with torch.autocast(z_ND.device.type, enabled=False):  # in bf16, distances of near codes would be equal
            return nearest(z_ND, self.embedding.weight).view(len(z_BDHW), -1)

    def forward(self, z_BDHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantised vectors (gradients straight through), codes (B, H·W), commitment and codebook distances.

        Both distances are mean((e - z)²); the first moves the encoder only, the second the codebook only.
        """
        with torch.no_grad():
            codes_BN = self.codes(z_BDHW)
        z_BDHW = z_BDHW.float()
        batch, dim, height, width = z_BDHW.shape
        e_BDHW = self.embedding(codes_BN).view(batch, height, width, dim).permute(0, 3, 1, 2)
        commitment = F.mse_loss(z_BDHW, e_BDHW.detach())
        codebook = F.mse_loss(e_BDHW, z_BDHW.detach())
        return z_BDHW + (e_BDHW - z_BDHW).detach(), codes_BN, commitment, codebook


def sample_far(x_ND: Tensor, chosen_KD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` rows of ``x_ND``, drawn by their squared distance to the nearest chosen one (k-means++'s rule).

    Distances are updated after each draw, so that the drawn ones are far from each other as well; of more than
    :data:`DRAWS` rows a few are drawn at once, since each draw reads all vectors. Fewer rows come back only if fewer
    differ from every chosen one.
    """
    found: list[Tensor] = []
    at_once, left = -(-count // DRAWS), count
    distance_N = _distance(x_ND, chosen_KD) if len(chosen_KD) else x_ND.new_full((len(x_ND),), torch.inf)
    while left:
        weight_N = torch.where(distance_N.isinf(), 1.0, distance_N).double()
        possible = int((weight_N > 0).sum())
        if not possible:
            break
        drawn_KD = x_ND[torch.multinomial(weight_N, min(at_once, left, possible), generator=generator)]
        if len(drawn_KD) > 1:
            drawn_KD = torch.unique(drawn_KD, dim=0)  # equal vectors at different places
        found.append(drawn_KD)
        left -= len(drawn_KD)
        distance_N = torch.minimum(distance_N, _distance(x_ND, drawn_KD))
    return torch.cat(found) if found else x_ND[:0]


def kmeans(x_ND: Tensor, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """``count`` centres (K, D) of the vectors: k-means++ and Lloyd's iterations. Equal inputs give equal centres.

    With fewer different vectors than centres, the rest are copies moved by a hair's breadth, so that they can part.
    """
    centres_KD = sample_far(x_ND, x_ND[:0], count, generator)
    if len(centres_KD) < count:
        index = torch.arange(count - len(centres_KD)) % len(centres_KD)
        noise_KD = torch.randn(len(index), x_ND.shape[1], generator=generator).to(x_ND) * 1e-3 * x_ND.std()
        centres_KD = torch.cat([centres_KD, centres_KD[index] + noise_KD])
    for _ in range(iterations):
        owner_N = nearest(x_ND, centres_KD)
        sums_KD = torch.zeros_like(centres_KD).index_add_(0, owner_N, x_ND)
        size_K = torch.bincount(owner_N, minlength=count)
        centres_KD = torch.where(size_K[:, None] > 0, sums_KD / size_K.clamp(min=1)[:, None], centres_KD)
    return centres_KD
