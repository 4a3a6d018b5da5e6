"""The attention block: rotary positions, QK-norm, and the cache of generation. Who computes it: ``backends.py``.

Shape letters: B batch, T new positions, S positions attended to, H heads, K key and value heads, C channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer.backends import PADDING, Attend
from model.transformer.config import TransformerConfig


def rotary_table(positions_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary embedding (Su et al., 2021), float32, each (B, T, 1, C).

    Channels are split in halves: channel i turns with channel i + C/2, by the angle position · theta^(-2i/C). The
    sine's first half is negated, so that turning is ``x * cos + swap_halves(x) * sin``.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_BT.device) / head_dim
    angles_BTh = positions_BT[..., None].float() * theta**-exponents
    cos, sin = angles_BTh.cos(), angles_BTh.sin()
    return torch.cat((cos, cos), -1)[:, :, None], torch.cat((-sin, sin), -1)[:, :, None]


def rotate(x_BTHC: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Applies rotary embedding, computed in float32 and returned in the input's dtype."""
    cos, sin = table
    swapped = torch.roll(x_BTHC, x_BTHC.shape[-1] // 2, -1)
    return torch.addcmul(x_BTHC * cos, swapped, sin).to(x_BTHC.dtype)


class HeadNorm(nn.Module):
    """QK-norm: LayerNorm over a head's channels, with one weight and bias a shard of heads (paper, section 2.3).

    Heads are numbered shard by shard: with H heads and S shards, head h belongs to shard h·S // H.
    """

    def __init__(self, shards: int, channels: int, eps: float) -> None:
        super().__init__()
        self.shards, self.eps = shards, eps
        self.weight = nn.Parameter(torch.ones(shards, channels))
        self.bias = nn.Parameter(torch.zeros(shards, channels))

    def forward(self, x_BTHC: Tensor) -> Tensor:
        c = x_BTHC.shape[-1]
        if self.shards == 1:
            return F.layer_norm(x_BTHC, (c,), self.weight[0], self.bias[0], self.eps)
        normal = F.layer_norm(x_BTHC, (c,), eps=self.eps)
        each = x_BTHC.shape[2] // self.shards
        weight_HC = self.weight.repeat_interleave(each, 0)
        return normal * weight_HC + self.bias.repeat_interleave(each, 0)


class KVCache:
    """Keys and values of the positions already computed, for generation.

    Room is made once for ``length`` positions. A forward with a cache takes only the new tokens, appends theirs and
    attends to all. Rows may be padded on the left with document ``PADDING`` so that prompts of unequal length end
    together; such positions are never attended to.
    """

    def __init__(
        self,
        config: TransformerConfig,
        batch: int,
        length: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (batch, config.n_kv_heads, length, config.head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.documents_BS = torch.full((batch, length), PADDING, dtype=torch.int32, device=device)
        self.next_B = torch.zeros(batch, dtype=torch.int64, device=device)
        """Rotary position of each row's next token; counts no padding."""
        self.batch, self.length, self.position = batch, length, 0

    def update(self, layer: int, key_BKTC: Tensor, value_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values; all of them so far, (B, K, S, C)."""
        end = self.position + key_BKTC.shape[2]
        self.keys[layer][:, :, self.position : end] = key_BKTC
        self.values[layer][:, :, self.position : end] = value_BKTC
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def mask(self, documents_BT: Tensor) -> Tensor:
        """The mask of new positions over old and new ones, bool (B, 1, T, S); records the documents."""
        t = documents_BT.shape[1]
        end = self.position + t
        if end > self.length:
            raise ValueError(f"the cache has room for {self.length} positions and {end} were asked for")
        self.documents_BS[:, self.position : end] = documents_BT
        seen = self.documents_BS[:, :end]
        same = documents_BT[:, :, None] == seen[:, None, :]
        causal = torch.ones(t, end, dtype=torch.bool, device=documents_BT.device).tril(self.position)
        return (same & causal)[:, None]

    def advance(self, documents_BT: Tensor) -> None:
        """Moves past the positions of a finished forward."""
        self.position += documents_BT.shape[1]
        self.next_B += (documents_BT != PADDING).sum(1)

    def select(self, rows: Tensor) -> None:
        """Keeps or repeats rows: int64 (B',) of row numbers. Used to fan one prompt out and to drop finished rows."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.documents_BS, self.next_B = self.documents_BS[rows], self.next_B[rows]
        self.batch = len(rows)


class Attention(nn.Module):
    """Multi-head or grouped-query attention without biases; queries, keys and values come from one matrix."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.layer = config.heads, config.n_kv_heads, config.head_dim, layer
        kv = self.kv_heads * self.head_dim
        self.qkv = nn.Linear(config.dim, config.dim + 2 * kv, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        if config.qk_norm:
            self.q_norm: nn.Module = HeadNorm(config.qk_norm_shards, self.head_dim, config.norm_eps)
            self.k_norm: nn.Module = HeadNorm(config.qk_norm_shards, self.head_dim, config.norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(
        self, x_BTD: Tensor, table: tuple[Tensor, Tensor], attend: Attend, cache: KVCache | None = None
    ) -> Tensor:
        """Attends; ``attend`` knows who to whom, over the cache's positions where there is one."""
        b, t, d = x_BTD.shape
        qkv = self.qkv(x_BTD).view(b, t, -1, self.head_dim)
        q_BTHC, k_BTKC, v_BTKC = torch.split(qkv, [self.heads, self.kv_heads, self.kv_heads], 2)
        q_BHTC = rotate(self.q_norm(q_BTHC), table).transpose(1, 2)  # QK-norm comes before the rotation
        k_BKTC, v_BKTC = rotate(self.k_norm(k_BTKC), table).transpose(1, 2), v_BTKC.transpose(1, 2)
        if cache is not None:
            k_BKTC, v_BKTC = cache.update(self.layer, k_BKTC, v_BKTC)
        y_BHTC = attend(q_BHTC, k_BKTC, v_BKTC)
        out: Tensor = self.out(y_BHTC.transpose(1, 2).reshape(b, t, d))
        return out
