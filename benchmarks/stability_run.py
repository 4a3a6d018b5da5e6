"""One training of ``benchmarks.stability``: the data, and a small model trained and watched.

The data are real: captioned pictures and web texts of the shared data. A picture becomes codes of 8x8 patches by the
repository's k-means (its tokenizer would want hours of training first), a text pieces by its BPE; documents and packing
are those of pre-training, half the tokens each modality. Codes are nearly incompressible and texts are not, which is
what makes a softmax that both share drift (paper, section 2.2).

Shape letters: B rows, T and S positions, H heads, C channels of a head, N counted labels.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import SHARED_DATA
from benchmarks.image_transforms import MAX_PIXELS, REFERENCE
from benchmarks.trainers import Ids, Micro, packed
from model.image_tokenizer.quantize import kmeans, nearest
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.train import train as train_text
from model.training.config import OptimizerConfig, ScheduleConfig
from model.training.optimizer import make_optimizer, set_learning_rate
from model.training.schedule import factor
from model.transformer.attention import Attention
from model.transformer.backends import Attend, document_mask
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer
from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, Vocabulary
from tasks.mix.bestfit import best_fit

PATCH = 8
HELD_OUT = 64
"""Rows kept apart for the loss at the end."""
Z_LOSS = 1e-5
"""The paper's."""


@dataclass(frozen=True)
class Scale:
    """Size of the model, its data and its training."""

    dim: int
    layers: int
    heads: int
    side: int
    """Codes along a picture's side."""
    codes: int
    pieces: int
    length: int
    batch: int
    steps: int
    warmup: int

    @property
    def vocabulary(self) -> Vocabulary:
        start = self.codes + 8
        return Vocabulary(image_codes=self.codes, text_start=start, size=start + self.pieces)


SCALES = {
    "tiny": Scale(dim=32, layers=2, heads=2, side=4, codes=16, pieces=400, length=64, batch=4, steps=6, warmup=2),
    "small": Scale(dim=96, layers=3, heads=3, side=8, codes=256, pieces=760, length=128, batch=8, steps=400, warmup=40),
    "large": Scale(
        dim=512, layers=8, heads=8, side=16, codes=1024, pieces=4088, length=512, batch=16, steps=1500, warmup=100
    ),
}
"""tiny: for tests; small: a 2-core machine; large: a GPU."""


@dataclass(frozen=True)
class Variant:
    """Which of the paper's means against divergence are in use."""

    qk_norm: bool
    z_loss: bool
    reordered: bool

    @property
    def name(self) -> str:
        named = {"QK-norm": self.qk_norm, "z-loss": self.z_loss, "reordered norm": self.reordered}
        return " + ".join(name for name, used in named.items() if used) or "none"


@dataclass(frozen=True)
class Job:
    """One training."""

    scale: str
    variant: Variant
    rate: float
    seed: int

    @property
    def file(self) -> str:
        return f"{self.scale}-{self.variant.name.replace(' ', '')}-{self.rate:g}-{self.seed}.json"


def rows_of(scale: Scale, data: Path = SHARED_DATA) -> list[list[Ids]]:
    """Packed rows of documents, shuffled; half of the tokens are pairs', half web texts'."""
    if not data.is_dir():
        raise SystemExit(
            f"{data}: no such folder. The study wants its pictures and texts, or rows made of them before."
        )
    pairs = _json_lines(data / "pairs/pairs.jsonl")[: 40 if scale is SCALES["tiny"] else None]
    web = [line["text"] for line in _json_lines(data / "text/c4_web.jsonl")]
    captions = [caption for pair in pairs for caption in pair["captions"]]
    vocabulary = scale.vocabulary
    tokenizer = train_text([*captions, *web], TextTokenizerConfig(), vocabulary)
    files = [(data / "pairs" / pair["file"]).read_bytes() for pair in pairs]
    pictures = np.stack([REFERENCE.crop_file(file, scale.side * PATCH, MAX_PIXELS) for file in files])
    rng = np.random.default_rng(0)
    documents: list[Ids] = []

    def add(*parts: Sequence[int]) -> int:
        ids = np.concatenate([[BOS], *parts, [EOS]])[: scale.length].astype(np.uint16)
        documents.append(ids)
        return len(ids)

    left = 0
    for number, codes in enumerate(picture_codes(pictures, scale.codes).tolist()):
        picture = [vocabulary.boi, *(FIRST_IMAGE_CODE + code for code in codes), vocabulary.eoi]
        for use, text in enumerate(pairs[number]["captions"][:2]):
            caption = tokenizer.encode(text)[: scale.length - len(picture) - 2]
            left += add(picture, caption) if (number + use) % 2 else add(caption, picture)
    while left > 0:
        ids = tokenizer.encode(web[int(rng.integers(len(web)))][:2000])
        size = int(rng.integers(8, scale.length - 1))
        begin = int(rng.integers(max(1, len(ids) - size)))
        left -= add(ids[begin : begin + size])
    sequence_N, _, opened = best_fit(np.array([len(ids) for ids in documents], np.int64), scale.length)
    rows: list[list[Ids]] = [[] for _ in range(opened)]
    for ids, row in zip(documents, sequence_N.tolist(), strict=True):
        rows[row].append(ids)
    rng.shuffle(rows)  # type: ignore[arg-type]  # a list is shuffled in place
    return rows


def picture_codes(pictures_BHWC: np.ndarray[Any, Any], codes: int) -> Tensor:
    """Codes of the patches in raster order, (B, S): the nearest of ``codes`` centres of these very patches."""
    x_BCHW = torch.from_numpy(pictures_BHWC).permute(0, 3, 1, 2).float() / 255
    x_BSC = x_BCHW.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x_NC = x_BSC.flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(x_NC), generator=generator)[: 60 * codes]
    return nearest(x_NC, kmeans(x_NC[some], codes, 6, generator)).view(len(x_BSC), -1)


def save_rows(file: Path, rows: list[list[Ids]]) -> None:
    """Keeps them, so that another machine needs no data and every training has the same."""
    lengths = [[len(ids) for ids in row] for row in rows]
    tokens = np.concatenate([ids for row in rows for ids in row])
    np.savez_compressed(
        file, tokens=tokens, lengths=np.concatenate(lengths), documents=np.array([len(row) for row in rows])
    )


def load_rows(file: Path) -> list[list[Ids]]:
    """What :func:`save_rows` kept."""
    with np.load(file) as found:
        ids = np.split(found["tokens"], np.cumsum(found["lengths"])[:-1])
        borders = np.cumsum(found["documents"]).tolist()
    return [ids[begin:end] for begin, end in zip([0, *borders], borders, strict=False)]


class Probe:
    """Watches single forwards: the largest attention logit of any layer, the output's norm."""

    def __init__(self, model: Transformer) -> None:
        self.mask: Tensor | None = None
        """bool (B, 1, T, S), who attends to whom; None: nothing is watched."""
        self.logit, self.output_norm = -math.inf, math.nan
        for module in model.modules():
            if isinstance(module, Attention):
                module.register_forward_pre_hook(self._attention)
        model.norm.register_forward_pre_hook(self._output)

    def _attention(self, module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self.mask is None else (*args[:2], self._watched(args[2]), *args[3:])

    def _watched(self, attend: Attend) -> Attend:
        def watch(q_BHTC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor) -> Tensor:
            assert self.mask is not None
            with torch.no_grad():
                logits_BHTS = (q_BHTC @ k_BHSC.transpose(2, 3)) * q_BHTC.shape[-1] ** -0.5
                self.logit = max(self.logit, float(logits_BHTS.masked_fill_(~self.mask, -torch.inf).amax()))
            return attend(q_BHTC, k_BHSC, v_BHSC)

        return watch

    def _output(self, module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        if self.mask is not None:
            self.output_norm = float(torch.linalg.vector_norm(args[0].detach().float(), dim=-1).mean())


def run(job: Job, rows: list[list[Ids]], device: str = "cpu") -> dict[str, Any]:
    """Trains; the run's course and its end. Stops early where the loss is no longer a number."""
    begun = time.monotonic()
    scale, variant = SCALES[job.scale], job.variant
    config = TransformerConfig(
        dim=scale.dim,
        layers=scale.layers,
        heads=scale.heads,
        dropout=0,
        qk_norm=variant.qk_norm,
        norm="reordered" if variant.reordered else "pre",
    )
    z_loss = Z_LOSS if variant.z_loss else 0.0
    model = Transformer(config, scale.vocabulary.size).initialise(job.seed).to(device)
    probe, optimizer = Probe(model), make_optimizer(model, OptimizerConfig(learning_rate=job.rate))
    schedule = ScheduleConfig(warmup_steps=scale.warmup)
    held_out, training = rows[:HELD_OUT], rows[HELD_OUT:]
    rng = np.random.default_rng(job.seed)  # the order is the seed's, the same for all variants and rates
    course: list[dict[str, float]] = []
    every = max(1, scale.steps // 40)
    for number in range(scale.steps):
        chosen = [training[i] for i in rng.integers(len(training), size=scale.batch)]
        micro = _to(packed(chosen, scale.length, scale.vocabulary), device)
        watched = number % every == 0 or number == scale.steps - 1
        probe.mask = document_mask(micro["documents"]) if watched else None
        probe.logit = -math.inf
        found = model.loss(_hidden(model, micro), micro["labels"], z_loss)
        optimizer.zero_grad(set_to_none=True)
        (found.total / len(found.nll_N)).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if watched:
            line = {"step": number, "loss": float(found.nll_N.mean()), "log_z": float(found.log_z_N.mean())}
            line |= {"z2": float(found.log_z_N.square().mean()), "gradient_norm": float(norm)}
            line |= {"max_attention_logit": probe.logit, "output_norm": probe.output_norm}
            course.append(line)
        if not bool(found.total.isfinite() & norm.isfinite()):
            break
        set_learning_rate(optimizer, job.rate * factor(schedule, number, scale.steps))
        optimizer.step()
    probe.mask = None
    micro = _to(packed(held_out, scale.length, scale.vocabulary), device)
    with torch.no_grad():
        found = model.loss(_hidden(model, micro), micro["labels"])
    image_N = micro["image"].flatten()[found.index_N]
    end = {"loss": found.nll_N, "loss_image": found.nll_N[image_N], "loss_text": found.nll_N[~image_N]}
    return {
        "variant": variant.name,
        "rate": job.rate,
        "seed": job.seed,
        "steps": number + 1,
        "seconds": time.monotonic() - begun,
        "held_out": {name: float(nll.mean()) for name, nll in end.items()},
        "course": course,
    }


def frequency_loss(scale: Scale, rows: list[list[Ids]]) -> float:
    """Held-out loss of one who knows how often each token comes, and nothing else."""
    counts = np.bincount(np.concatenate([i for row in rows[HELD_OUT:] for i in row]), minlength=scale.vocabulary.size)
    shares = (counts + 0.5) / (counts + 0.5).sum()
    return float(-np.log(shares[np.concatenate([ids[1:] for row in rows[:HELD_OUT] for ids in row])]).mean())


def _hidden(model: Transformer, micro: Micro) -> Tensor:
    out: Tensor = model(micro["tokens"], micro["documents"], micro["positions"])
    return out


def _to(micro: Micro, device: str) -> Micro:
    return {name: tensor.to(device) for name, tensor in micro.items()}


def _json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]  # of bytes: U+2028 ends no line
