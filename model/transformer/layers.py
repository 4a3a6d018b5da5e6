"""The blocks of the transformer: feed-forward, one layer in either norm order, and the output head.

Shape letters: B batch, T positions, D width, V vocabulary, N counted positions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer.attention import Attention, KVCache
from model.transformer.config import TransformerConfig


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
        self.attention = Attention(config, index)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.feed_forward_norm = nn.RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x_BTD: Tensor, table: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        if self.pre:
            h_BTD = x_BTD + self._drop(self.attention(self.attention_norm(x_BTD), table, mask, cache))
            return h_BTD + self._drop(self.feed_forward(self.feed_forward_norm(h_BTD)))
        h_BTD = x_BTD + self._drop(self.attention_norm(self.attention(x_BTD, table, mask, cache)))
        return h_BTD + self._drop(self.feed_forward_norm(self.feed_forward(h_BTD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout and self.training else x
