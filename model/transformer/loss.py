"""Cross-entropy with z-loss, computed from hidden states in chunks, so that the logits never exist as a whole.

For a counted position with logits z, label y and log Z = logsumexp(z), the loss is ``(log Z - z_y) + λ·(log Z)²`` with
λ = 1e-5 in Chameleon (paper, section 2.3), Z over the whole vocabulary. Labels come already shifted.

Shape letters: B batch, T positions, D width, V vocabulary, N counted positions, R rows of a chunk, P of a piece of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.data.batch import IGNORE

CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 27}
"""Logits computed at once: 2 MB in float32 on a CPU, which stays in its cache; a quarter of a gigabyte in bf16 on a
GPU."""

LARGE_WEIGHT, LEAST_ROWS = 1 << 22, 1024
"""An output matrix of more elements is in no CPU's cache and read again for each chunk, which then has so many rows."""

PIECE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Logits of which the softmax is taken at once, in float32: where a chunk is in no cache, its pieces are."""


class TokenLoss(NamedTuple):
    """The loss of a forward. Only ``total`` carries a gradient; the rest is for accounts, float32, detached."""

    total: Tensor
    """Sum over counted positions of weight · (nll + λ·(log Z)²); a scalar, 0 where none counts."""
    nll_N: Tensor
    """Negative log-likelihood of each counted label, nats."""
    log_z_N: Tensor
    index_N: Tensor
    """The counted positions, int64 into the flattened (B·T)."""


def token_loss(
    hidden_BTD: Tensor,
    weight_VD: Tensor,
    labels_BT: Tensor,
    z_loss: float = 0.0,
    weights_BT: Tensor | None = None,
) -> TokenLoss:
    """Loss of ``labels`` under the logits ``hidden @ weight.T``; positions labelled IGNORE cost and count nothing.

    ``weights_BT`` (float32) weighs positions; None: all alike. Logits are float32 sums of products that are
    rounded to the inputs' dtype: in bf16 a token's figures are off by up to half a bf16 step of its logits. The
    gradients return in the inputs' dtype.
    """
    labels = labels_BT.flatten()
    index_N = (labels != IGNORE).nonzero().squeeze(1)
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, index_N)
    wanted = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    weights_N = None if weights_BT is None else weights_BT.flatten()[index_N]
    total, nll, log_z = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, labels[index_N], weights_N, z_loss, wanted
    )
    return TokenLoss(total, nll, log_z, index_N)


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients along with the loss: since the loss is a plain sum, backward only scales them.

    That saves keeping or recomputing the logits, which are the largest tensors of a training step by far.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        weights_N: Tensor | None,
        z_loss: float,
        wanted: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, v, device = len(labels_N), len(weight_VD), hidden_ND.device.type
        least = LEAST_ROWS if weight_VD.numel() > LARGE_WEIGHT else 16
        rows = min(max(least, CHUNK_ELEMENTS.get(device, 1 << 19) // v), max(1, n))
        nll_N = hidden_ND.new_empty(n, dtype=torch.float32)
        log_z_N = torch.empty_like(nll_N)
        d_hidden = torch.empty_like(hidden_ND) if wanted else None
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if wanted else None
        # Made once: so much memory comes from the system each time, which clears it page by page.
        room_RV = hidden_ND.new_empty(rows, v)
        for start in range(0, n, rows):
            chunk = slice(start, start + rows)
            h_RD, y_R1 = hidden_ND[chunk], labels_N[chunk, None]
            w_R1 = nll_N.new_ones(y_R1.shape) if weights_N is None else weights_N[chunk, None]
            z_RV = torch.mm(h_RD, weight_VD.T, out=room_RV[: len(h_RD)])
            nll_N[chunk, None], log_z_N[chunk, None] = _losses(z_RV, y_R1, w_R1, z_loss, wanted)
            if d_hidden is None or d_weight is None:
                continue
            torch.mm(z_RV, weight_VD, out=d_hidden[chunk])  # z_RV is d(loss)/dz by now
            if d_weight.dtype == z_RV.dtype:
                d_weight.addmm_(z_RV.T, h_RD)
            else:
                d_weight += z_RV.T @ h_RD
        ctx.mark_non_differentiable(nll_N, log_z_N)
        if d_hidden is not None and d_weight is not None:
            ctx.save_for_backward(d_hidden, d_weight.to(weight_VD.dtype))
        loss_N = nll_N + z_loss * log_z_N.square()
        return (loss_N if weights_N is None else loss_N * weights_N).sum(), nll_N, log_z_N

    @staticmethod
    def backward(ctx: Any, d_total: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors  # scaled in place: they are large; autograd refuses a second backward
        return d_hidden.mul_(d_total), d_weight.mul_(d_total), None, None, None, None


def _losses(z_RV: Tensor, y_R1: Tensor, w_R1: Tensor, z_loss: float, wanted: bool) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and log Z of a chunk's rows, float32 (R, 1). ``wanted``: leaves d(loss)/dz in z's place.

    That is w·((1 + 2λ·log Z)·softmax(z) - onehot(y)), computed in float32 and rounded once: 1 + 2λ·log Z is so near 1
    that bf16 would make it 1.
    """
    nll_R1 = torch.empty_like(w_R1)
    log_z_R1 = torch.empty_like(nll_R1)
    some = max(1, PIECE_ELEMENTS.get(z_RV.device.type, 1 << 20) // z_RV.shape[1])
    for first in range(0, len(z_RV), some):
        piece = slice(first, first + some)
        z_PV, y_P1, w_P1 = z_RV[piece], y_R1[piece], w_R1[piece]
        z_y_P1, top_P1 = z_PV.gather(1, y_P1).float(), z_PV.amax(1, keepdim=True).float()
        e_PV = z_PV.float().sub_(top_P1).exp_()  # float32 logits are overwritten
        sum_P1 = e_PV.sum(1, keepdim=True)
        log_z_P1 = sum_P1.log() + top_P1
        nll_P1 = log_z_P1 - z_y_P1
        nll_R1[piece], log_z_R1[piece] = nll_P1, log_z_P1
        if wanted:
            slope_P1 = w_P1 * (1 + 2 * z_loss * log_z_P1)
            torch.mul(e_PV, slope_P1 / sum_P1, out=z_PV)
            z_PV.scatter_(1, y_P1, (slope_P1 * torch.exp(-nll_P1) - w_P1).to(z_PV.dtype))
    return nll_R1, log_z_R1
