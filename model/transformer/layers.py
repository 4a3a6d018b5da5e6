"""The blocks of the transformer: feed-forward, and one layer in either norm order, with what its backward recomputes.

Shape letters: B batch, T positions, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from infra.settings import ActivationCheckpointing
from model.transformer.attention import Attention, KVCache
from model.transformer.backends import Attend
from model.transformer.config import TransformerConfig

EXPENSIVE = (
    *("aten::mm", "aten::addmm", "aten::linear"),
    *("aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    *("aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention"),
    *("torch_attn::_varlen_attn", "flex_attention"),
    *("xformers_flash::flash_fwd", "xformers_flash3::flash_fwd", "xformers::efficient_attention_forward_cutlass"),
)
"""Operators whose results selective checkpointing keeps; what lies between them is cheap to compute again.

Batched products are not among them: written-out attention's scores are T x T, the largest of all activations.
"""


def keep_expensive(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Selective checkpointing's policy: keep what is in EXPENSIVE, compute the rest again."""
    name: str = operator.name() if isinstance(operator, torch._ops.OpOverload) else str(operator)  # type: ignore[no-untyped-call]
    kept = name.partition(".")[0] in EXPENSIVE
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class FeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))``; gate and up are the two halves of one matrix."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTD).chunk(2, -1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Layer(nn.Module):
    """Attention and feed-forward, each with RMSNorm, dropout and a residual.

    ``pre``: ``h = x + attention(norm(x))``, as LLaMA and Chameleon-7B. ``reordered``: ``h = x + norm(attention(x))``,
    as Swin and Chameleon-34B, which bounds the growth of the residual's norm (paper, section 2.3).
    """

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.dropout = config.dropout
        self.checkpointing: ActivationCheckpointing = "none"
        self.attention = Attention(config, index)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.feed_forward_norm = nn.RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x_BTD: Tensor, table: tuple[Tensor, Tensor], attend: Attend, cache: KVCache | None = None
    ) -> Tensor:
        if self.checkpointing == "none" or cache is not None or not torch.is_grad_enabled():
            return self._compute(x_BTD, table, attend, cache)
        # The checkpoint is inside of what torch.compile compiles: outside it could not see single operators.
        selective = {"context_fn": partial(create_selective_checkpoint_contexts, keep_expensive)}
        more: dict[str, Any] = selective if self.checkpointing == "selective" else {}
        out: Tensor = checkpoint(self._compute, x_BTD, table, attend, use_reentrant=False, **more)
        return out

    def _compute(
        self, x_BTD: Tensor, table: tuple[Tensor, Tensor], attend: Attend, cache: KVCache | None = None
    ) -> Tensor:
        if self.pre:
            h_BTD = x_BTD + self._drop(self.attention(self.attention_norm(x_BTD), table, attend, cache))
            return h_BTD + self._drop(self.feed_forward(self.feed_forward_norm(h_BTD)))
        h_BTD = x_BTD + self._drop(self.attention_norm(self.attention(x_BTD, table, attend, cache)))
        return h_BTD + self._drop(self.feed_forward_norm(self.feed_forward(h_BTD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout and self.training else x
