"""Optimizer steps of our transformer and of ``transformers``' Chameleon with the same weights, alike in all else.

The peer is ``ChameleonForConditionalGeneration`` as it comes, with torch's own attention, cross-entropy and AdamW, and
goes through ``lm_head(model.model(...)[0])``: its ``forward`` overwrites the logits of picture codes. Kindly to it, its
labels come shifted, it keeps no cache, it is spared the z-loss, and AdamW is fused for both.

Shape letters: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.data.batch import IGNORE
from model.training.config import OptimizerConfig
from model.training.optimizer import make_optimizer
from model.transformer.convert import to_transformers, transformers_config
from model.transformer.model import Transformer
from model.vocabulary import PAD, Vocabulary

OPTIMIZER = OptimizerConfig()
Z_LOSS = 1e-5
Ids = npt.NDArray[np.uint16]
Micro = Mapping[str, Tensor]


class Ours:
    """Our transformer; the loss in chunks, never the whole logits, and attention inside documents."""

    def __init__(self, model: Transformer) -> None:
        self.module = model

    def total(self, micro: Micro) -> Tensor:
        hidden_BTD = self.module(micro["tokens"], micro.get("documents"), micro.get("positions"))
        return self.module.loss(hidden_BTD, micro["labels"], Z_LOSS).total

    def nll(self, micro: Micro) -> float:
        """The summed negative log-likelihood, without the z-loss."""
        hidden_BTD = self.module(micro["tokens"], micro.get("documents"), micro.get("positions"))
        return float(self.module.loss(hidden_BTD, micro["labels"]).total)


class Peer:
    """``transformers``' model with a copy of ``ours``' weights, in the same dtype, on the same device."""

    def __init__(self, ours: Transformer) -> None:
        from transformers import ChameleonConfig, ChameleonForConditionalGeneration

        vq = {"base_channels": 32, "channel_multiplier": [1], "embed_dim": 8, "latent_channels": 8, "resolution": 8}
        config = ChameleonConfig(
            **transformers_config(ours.config, ours.vocabulary_size),
            vocabulary_map={"<image>": 8, "IMGIMGAZ": 4},
            vq_config={**vq, "num_embeddings": 16, "num_res_blocks": 1},
            attn_implementation="sdpa",
        )
        first = next(ours.parameters())
        with first.device:
            self.module: Any = ChameleonForConditionalGeneration(config)
        for p in self.module.parameters():  # not module.to(): that would round the rotary frequencies as well
            p.data = p.data.to(first.dtype)
        missing, unexpected = self.module.load_state_dict(to_transformers(ours.state_dict(), ours.config), strict=False)
        if unexpected or not all(name.startswith("model.vqmodel.") for name in missing):
            raise SystemExit(f"transformers' model has other weights: {unexpected[:3]} unknown, {missing[:3]} missing")
        self.module.model.vqmodel.requires_grad_(False)  # has no part in training on tokens
        self.loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy

    def total(self, micro: Micro) -> Tensor:
        hidden_BTD = self.module.model(
            input_ids=micro["tokens"], attention_mask=micro.get("attention_mask"), use_cache=False
        )[0]
        return self.loss(self.module.lm_head(hidden_BTD), micro["labels"])

    def nll(self, micro: Micro) -> float:
        return float(self.total(micro))


def cross_entropy(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """torch's, summed, in float32 as ``transformers`` has it."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=IGNORE, reduction="sum")


def optimizer_of(side: Ours | Peer) -> torch.optim.Optimizer:
    """Each side's AdamW with the same settings: ours with its groups, the peer's as torch makes it."""
    if isinstance(side, Ours):
        return make_optimizer(side.module, OPTIMIZER)
    trained = [p for p in side.module.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        trained,
        lr=OPTIMIZER.learning_rate,
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
        weight_decay=OPTIMIZER.weight_decay,
        fused=True,
    )


def step(side: Ours | Peer, optimizer: torch.optim.Optimizer, micros: Sequence[Micro]) -> None:
    """One optimizer step over the micro-batches: the mean over all their labels, clipped."""
    count = labels_of(micros)
    optimizer.zero_grad(set_to_none=True)
    for micro in micros:
        (side.total(micro) / count).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_((p for p in side.module.parameters() if p.grad is not None), OPTIMIZER.clip)
    optimizer.step()


@torch.no_grad()
def mean_nll(side: Ours | Peer, micros: Sequence[Micro]) -> float:
    """Nats a label, before any step."""
    side.module.eval()
    found = sum(side.nll(micro) for micro in micros) / labels_of(micros)
    side.module.train()
    return found


def labels_of(micros: Iterable[Micro]) -> int:
    """Labels that count: the useful tokens."""
    return sum(int((micro["labels"] != IGNORE).sum()) for micro in micros)


def packed(rows: Sequence[Sequence[Ids]], length: int, vocabulary: Vocabulary) -> Micro:
    """Documents laid one after another in rows of ``length``, as the loader gives them."""
    from model.data.batch import make_batch  # needs the stores' packages, which a machine with a GPU may lack

    tokens_BT = np.full((len(rows), length), PAD, np.uint16)
    starts_BT = np.zeros((len(rows), length), np.bool_)
    for b, documents in enumerate(rows):
        at = 0
        for ids in documents:
            tokens_BT[b, at : at + len(ids)], starts_BT[b, at] = ids, True
            at += len(ids)
        if at < length:
            starts_BT[b, at] = True
    return make_batch(tokens_BT, starts_BT, None, np.arange(len(rows)), vocabulary)


def padded(documents: Sequence[Ids]) -> Micro:
    """A row a document, padded to the longest of them on the right."""
    lengths_B = torch.tensor([len(ids) for ids in documents])
    tokens_BT = torch.full((len(documents), int(lengths_B.max())), PAD)
    for b, ids in enumerate(documents):
        tokens_BT[b, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    steps_T = torch.arange(tokens_BT.shape[1])
    labels_BT = torch.where(steps_T < lengths_B[:, None] - 1, tokens_BT.roll(-1, 1), IGNORE)
    mask_BT = (steps_T < lengths_B[:, None]).long()
    whole = bool(mask_BT.all())  # then its attention is causal without a mask, the faster way
    return {"tokens": tokens_BT, "labels": labels_BT} | ({} if whole else {"attention_mask": mask_BT})
