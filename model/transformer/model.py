"""The transformer: tokens of text and pictures in one sequence, through one stack of layers.

Shape letters: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from infra.settings import ActivationCheckpointing, AttentionBackend
from model.compiler import require_compiler
from model.transformer.attention import KVCache, rotary_table
from model.transformer.backends import Segments, choose, masked, prepare
from model.transformer.config import TransformerConfig
from model.transformer.layers import Layer
from model.transformer.loss import TokenLoss, token_loss


class Head(nn.Module):
    """The output matrix, not tied to the embedding; one module for logits and loss, as ZeRO-3 gathers by module."""

    def __init__(self, vocabulary_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary_size, dim))

    def forward(
        self,
        hidden_BTD: Tensor,
        labels_BT: Tensor | None = None,
        z_loss: float = 0.0,
        weights_BT: Tensor | None = None,
    ) -> Tensor | TokenLoss:
        """Logits (…, V); with labels their loss instead, without ever holding the logits."""
        if labels_BT is None:
            return nn.functional.linear(hidden_BTD, self.weight)
        return token_loss(hidden_BTD, self.weight, labels_BT, z_loss, weights_BT)


class Transformer(nn.Module):
    """A decoder over the shared vocabulary (paper, section 2.3)."""

    def __init__(self, config: TransformerConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.config, self.vocabulary_size = config, vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, config.dim)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.lm_head = Head(vocabulary_size, config.dim)
        self.attention_backend: AttentionBackend = "auto"
        self.see: Callable[[int, Tensor], None] | None = None
        """Shown the residual stream (B, T, D) after 0, 1, … layers in every forward. Outside of the layers, which may
        be compiled."""

    def forward(
        self,
        tokens_BT: Tensor,
        documents_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
        segments: Segments | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, (B, T, D).

        Args:
            tokens_BT: int64 ids.
            documents_BT: int32, each position's document within its row, -1 for padding; attention stays inside a
                document. None: every row is one document.
            positions_BT: int64 rotary positions. None: 0, 1, … within the row; with a cache, where each row stands.
            cache: keys and values of earlier positions; the tokens given are the new ones only.
            segments: borders of the documents, where the caller has them (a loader's ``cu_seqlens``): on a GPU that
                saves the wait in which they would be found. Must agree with ``documents_BT``.

        Raises:
            ResourceError: ``attention_backend`` does not work here.
        """
        b, t = tokens_BT.shape
        table = rotary_table(
            self._positions(tokens_BT, documents_BT, cache) if positions_BT is None else positions_BT,
            self.config.head_dim,
            self.config.rope_theta,
        )
        x_BTD = self.embedding(tokens_BT)
        dtype = x_BTD.dtype
        backend = choose(self.attention_backend, x_BTD.device, dtype, self.config.head_dim)
        if cache is not None:
            if documents_BT is None:
                documents_BT = torch.zeros(tokens_BT.shape, dtype=torch.int32, device=tokens_BT.device)
            attend = masked(backend, cache.mask(documents_BT), dtype)
        else:
            attend = prepare(backend, documents_BT, b, t, x_BTD.device, dtype, segments)
        for number, layer in enumerate(self.layers):
            if self.see is not None:
                self.see(number, x_BTD)
            x_BTD = layer(x_BTD, table, attend, cache)
        if self.see is not None:
            self.see(len(self.layers), x_BTD)
        if cache is not None and documents_BT is not None:
            cache.advance(documents_BT)
        out: Tensor = self.norm(x_BTD)
        return out

    def _positions(self, tokens_BT: Tensor, documents_BT: Tensor | None, cache: KVCache | None) -> Tensor:
        """Rotary positions where none are given. With a cache, padding takes no position."""
        b, t = tokens_BT.shape
        steps = torch.arange(t, device=tokens_BT.device).expand(b, t)
        if cache is None:
            return steps
        if documents_BT is not None:
            steps = ((documents_BT >= 0).long().cumsum(1) - 1).clamp(min=0)
        return cache.next_B[:, None] + steps

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits over the whole vocabulary, (…, V)."""
        out: Tensor = self.lm_head(hidden_BTD)
        return out

    def loss(
        self, hidden_BTD: Tensor, labels_BT: Tensor, z_loss: float = 0.0, weights_BT: Tensor | None = None
    ) -> TokenLoss:
        """Cross-entropy and z-loss of already shifted labels; see :func:`token_loss`."""
        out: TokenLoss = self.lm_head(hidden_BTD, labels_BT, z_loss, weights_BT)
        return out

    @torch.no_grad()
    def initialise(self, seed: int) -> Transformer:
        """This model with the weights of :meth:`draw`."""
        for p, (_, drawn) in zip(self.parameters(), self.draw(seed), strict=True):
            p.copy_(drawn)
        return self

    def draw(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Random weights by name, on the CPU, each drawn when it is asked for; the model may be on the meta device.

        The same for the same seed: matrices N(0, 1/inputs), and those that write to the residual smaller by
        sqrt(2·layers), so that its variance does not grow with depth; norms at 1; embedding N(0, 0.02²).
        """
        generator = torch.Generator().manual_seed(seed)
        depth = math.sqrt(2 * self.config.layers)
        for name, shape, dtype in [(name, p.shape, p.dtype) for name, p in self.named_parameters()]:
            if "norm" in name:
                yield name, torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=dtype)
                continue
            scale = 0.02 if name.startswith("embedding") else shape[1] ** -0.5
            if name.endswith(("attention.out.weight", "down.weight")) and self.config.norm == "pre":
                scale /= depth
            yield name, torch.empty(shape, dtype=dtype).normal_(0, scale, generator=generator)

    def run_with(
        self,
        attention_backend: AttentionBackend = "auto",
        activation_checkpointing: ActivationCheckpointing = "none",
        compile: bool = False,
    ) -> Transformer:
        """This model, from now on computed in another way; the results are the same up to rounding.

        Args:
            compile: Each layer through torch.compile, at its first forward; for training, whose shapes stay the same.

        Raises:
            ResourceError: there is no compiler for torch.compile.
        """
        if compile:
            require_compiler("resources.compile", "cuda" if torch.cuda.is_available() else "cpu")
        self.attention_backend = attention_backend
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.checkpointing = activation_checkpointing
            if compile:
                layer.compile()
        return self

    def with_dropout(self, dropout: float) -> Transformer:
        """This model, from now on with another dropout."""
        self.config = self.config.model_copy(update={"dropout": dropout})
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.dropout = dropout
        return self

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())
