"""What is looked at inside a model while it trains; nothing here changes what the training computes.

Every step: the norm of the residual stream after each layer (:class:`ResidualNorms`), taken from the training's own
forward. Every ``watch.every`` steps (:class:`Watch`), after the optimizer has moved:

- the largest attention logit of each layer, from one more forward without gradients over one sequence a worker, for all
  heads and a sample of the positions. The scores of a layer are made for these positions alone and dropped at once.
- the size of AdamW's last update beside the parameters', by layer, from what the optimizer keeps: each worker adds up
  its own part, so that nothing is gathered and nothing copied at any ZeRO stage;
- memory.

Shape letters: B batch, T positions, S positions attended to, R sampled positions, H heads, K key and value heads,
C channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.data.batch import Batch
from model.training.watch.config import WatchConfig
from model.training.watch.updates import squared_norms
from model.transformer.attention import Attention
from model.transformer.model import Transformer

STRIDE = 2_654_435_761
"""A prime: its multiples visit every offset below any smaller stride, far apart in turn."""


class ResidualNorms:
    """L2 norms of the residual stream of the last forward, after 0, 1, … layers."""

    def __init__(self, transformer: Transformer) -> None:
        self._seen: list[Tensor] = [torch.empty(0)] * (transformer.config.layers + 1)
        transformer.see = self._see

    def sums(self, real_BT: Tensor) -> Tensor:
        """Sums of the norms over real positions, float64 (layers + 1,): the embedding's first, the output's last."""
        return torch.stack([norm_BT[real_BT].double().sum() for norm_BT in self._seen])

    def _see(self, layers: int, x_BTD: Tensor) -> None:
        self._seen[layers] = torch.linalg.vector_norm(x_BTD.detach(), dim=-1, dtype=torch.float32)


class Watch:
    """Looks inside a training every few steps. Made and asked by all ranks together."""

    def __init__(self, engine: Any, transformer: Transformer, config: WatchConfig) -> None:
        self._engine, self._transformer, self._config = engine, transformer, config

    def look(self, step: int, micro: Batch) -> dict[str, Any]:
        """Figures for the line of ``step``, the same on all ranks; empty in the steps between.

        ``max_attention_logit`` and by layer ``max_attention_logits`` (scaled by 1/sqrt(C), as the softmax takes them);
        ``update_ratio``: norm of the update over norm of the parameters, for ``all``, ``embedding``, ``lm_head``,
        ``norms`` and each layer's matrices; ``memory_gb``, the largest of all workers: on a GPU the most allocated
        since the last look, and ``memory_reserved_gb``; on a CPU the process' resident memory.
        """
        if not self._config.every or step % self._config.every:
            return {}
        found: dict[str, Any] = {}
        logits_L = self._attention_logits(step, micro)
        if bool(logits_L.isfinite().all()):  # not so where all ranks hold nothing but padding
            found |= {"max_attention_logit": float(logits_L.max()), "max_attention_logits": logits_L.tolist()}
        return found | {"update_ratio": self._update_ratios()} | self._memory()

    def _attention_logits(self, step: int, micro: Batch) -> Tensor:
        """The largest of each layer, float32 (layers,)."""
        fullest = int((micro["documents"] >= 0).sum(1).argmax())
        row = {n: micro[n][fullest, None] for n in ("tokens", "labels", "documents", "positions", "image")}
        shift = step // self._config.every * STRIDE  # by looks: steps would share factors with the stride
        with sampled_logits(self._transformer, self._config.attention_positions, shift) as layers, torch.no_grad():
            self._engine.eval()  # no dropout: no random numbers are drawn
            with torch.compiler.set_stance("force_eager"):  # compiled layers have no room for the sample
                self._engine(row)
            self._engine.train()
        top = torch.stack(layers).to(self._engine.device)
        dist.all_reduce(top, dist.ReduceOp.MAX)
        return top.cpu()

    def _update_ratios(self) -> dict[str, float]:
        names, sums_2N = squared_norms(self._engine, self._transformer)
        sums_2N = torch.cat((sums_2N.sum(1, keepdim=True), sums_2N), 1).cpu()
        return {
            name: float(update / weight)
            for name, update, weight in zip(("all", *names), *sums_2N.sqrt(), strict=True)
            if weight > 0
        }

    def _memory(self) -> dict[str, float]:
        device = self._engine.device
        if device.type == "cuda":
            mine = [torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)]
            torch.cuda.reset_peak_memory_stats(device)
        else:
            mine = [psutil.Process().memory_info().rss]
        most = torch.tensor(mine, dtype=torch.float64, device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return {n: round(b / 1e9, 3) for n, b in zip(("memory_gb", "memory_reserved_gb"), most.tolist(), strict=False)}


@contextmanager
def sampled_logits(transformer: Transformer, positions: int, shift: int) -> Iterator[list[Tensor]]:
    """Watches the forwards inside: each layer's largest attention logit, float32 (), in the list that it yields.

    Queries are every n-th position, about ``positions`` of them; ``shift`` moves them. -inf where all are padding.
    """
    layers = [torch.tensor(-torch.inf)] * transformer.config.layers
    documents: list[Tensor] = []

    def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        documents[:] = [torch.zeros_like(inputs[0]) if inputs[1] is None else inputs[1]]

    def wrap(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        assert isinstance(module, Attention)
        x_BTD, table, attend, *rest = inputs
        place = module.layer

        def watch(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Tensor:
            stride = max(1, q_BHTC.shape[2] // positions)
            chosen_R = torch.arange(shift % stride, q_BHTC.shape[2], stride, device=q_BHTC.device)
            layers[place] = largest_logit(q_BHTC, k_BKSC, documents[0], chosen_R)
            out: Tensor = attend(q_BHTC, k_BKSC, v_BKSC)
            return out

        return (x_BTD, table, watch, *rest)

    hooks = [transformer.register_forward_pre_hook(begin)]
    hooks += [m.register_forward_pre_hook(wrap) for m in transformer.modules() if isinstance(m, Attention)]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def largest_logit(q_BHTC: Tensor, k_BKSC: Tensor, documents_BT: Tensor, chosen_R: Tensor) -> Tensor:
    """The largest q·k/sqrt(C), float32 (), that the chosen positions have with what they attend to; T is S."""
    b, h, _, c = q_BHTC.shape
    kv_heads, t = k_BKSC.shape[1:3]
    q_BHRC = q_BHTC.index_select(2, chosen_R).float() * c**-0.5
    q_BKNC = q_BHRC.reshape(b, kv_heads, -1, c)  # neighbouring heads share a key
    scores_BHRS = (q_BKNC @ k_BKSC.float().transpose(2, 3)).view(b, h, len(chosen_R), t)
    theirs_BR1 = documents_BT[:, chosen_R, None]
    earlier_RS = torch.arange(t, device=chosen_R.device) <= chosen_R[:, None]
    seen_BRS = (theirs_BR1 == documents_BT[:, None]) & (theirs_BR1 >= 0) & earlier_RS
    largest: Tensor = scores_BHRS.masked_fill_(~seen_BRS[:, None], -torch.inf).amax()
    return largest
