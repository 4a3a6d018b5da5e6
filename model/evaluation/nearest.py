"""Nearest neighbours by root mean square difference, in blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 24
"""Reference values converted to float at once: 64 MiB."""


def distances(queries_QD: Tensor, references_RD: Tensor) -> Tensor:
    """Root mean square difference of every query to every reference, (Q, R) float32.

    Both may have any number of dimensions after the first, and any dtype; uint8 pixels give distances in grey levels.
    """
    q_QD, references_RD = queries_QD.flatten(1).float(), references_RD.flatten(1)
    width = q_QD.shape[1]
    found = []
    for block_rD in torch.split(references_RD, max(1, BLOCK_ELEMENTS // width)):
        found.append(torch.cdist(q_QD, block_rD.float(), compute_mode="donot_use_mm_for_euclid_dist"))
    return torch.cat(found, 1) / math.sqrt(width)


def rank_of(distances_QR: Tensor, right_Q: Tensor) -> Tensor:
    """(Q,) int64: 1 plus how many references are strictly nearer than the right one."""
    own_Q1 = distances_QR.gather(1, right_Q[:, None])
    return (distances_QR < own_Q1).sum(1) + 1
