"""Configuration of the transformer: Chameleon's two sizes and any other are values of this one class."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from infra.config import Config


class TransformerConfig(Config):
    """A LLaMA-2 shaped decoder with QK-norm and either norm order. The defaults are Chameleon-7B's."""

    dim: int = Field(default=4096, ge=8)
    layers: int = Field(default=32, ge=1)
    heads: int = Field(default=32, ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads; None: as many as heads."""
    ffn: int | None = Field(default=None, ge=1)
    """Inner width of the feed-forward block; None: 256·ceil(floor(8·dim/3)/256)."""
    norm: Literal["pre", "reordered"] = "pre"
    """pre: ``h = x + attn(norm(x))``; reordered (Swin, Chameleon-34B): ``h = x + norm(attn(x))``."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """After attention and after the feed-forward block (7B: 0.1; 34B: 0)."""
    qk_norm: bool = True
    qk_norm_shards: int = Field(default=1, ge=1)
    """Sets of QK-norm weights; each serves heads/shards heads (7B: 1; 34B: 4, one a model-parallel shard)."""
    norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def n_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def ffn_dim(self) -> int:
        return self.ffn if self.ffn is not None else 256 * -(-(8 * self.dim // 3) // 256)

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.dim % self.heads or self.head_dim % 2:
            raise ValueError(f"dim is {self.dim} with {self.heads} heads; dim/heads must be a whole, even number")
        if self.heads % self.n_kv_heads:
            raise ValueError(f"kv_heads is {self.n_kv_heads}; it must divide heads = {self.heads}")
        if self.heads % self.qk_norm_shards or self.n_kv_heads % self.qk_norm_shards:
            raise ValueError(
                f"qk_norm_shards is {self.qk_norm_shards}; it must divide heads = {self.heads} and "
                f"kv_heads = {self.n_kv_heads}"
            )
        return self

    def parameters(self, vocabulary: int) -> int:
        """Number of parameters with untied embeddings; 7,013,158,912 for the defaults and 65,536 ids."""
        kv = self.n_kv_heads * self.head_dim
        attention = 2 * self.dim * self.dim + 2 * self.dim * kv
        qk = 4 * self.qk_norm_shards * self.head_dim if self.qk_norm else 0
        layer = attention + qk + 3 * self.dim * self.ffn_dim + 2 * self.dim
        return 2 * vocabulary * self.dim + self.layers * layer + self.dim

    def training_flops(self, vocabulary: int, length: int) -> int:
        """Training FLOPs a token, forward and backward: 6·(weights in matmuls) + full attention over ``length``."""
        matmul = self.parameters(vocabulary) - vocabulary * self.dim
        return 6 * matmul + 12 * self.layers * self.dim * length


class ExportConfig(Config):
    """How the finished model is written."""

    max_shard_gb: float = Field(default=4, gt=0)
    """Gigabytes of a file of weights, at most; one that is whole is ``model.safetensors``."""
    original: bool = False
    """Write the original layout, too: ``consolidated.pth`` or one file a shard of the QK-norm, and ``params.json``."""
