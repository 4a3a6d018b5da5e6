"""Choice by likelihood: which of several answers a model finds most probable after a prompt.

A prompt is run once and its keys and values are shared by all of its answers, so a question with ten short answers
costs little more than its prompt.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.transformer.attention import KVCache
from model.transformer.backends import PADDING
from model.transformer.model import Transformer
from model.vocabulary import PAD

LOGIT_ELEMENTS = 1 << 24
"""Logits held at once: 64 MiB of float32."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its possible answers, as ids."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many questions were answered rightly, with the 95% interval (Wilson) and the chance level."""

    right: int
    asked: int
    chance: float

    @property
    def share(self) -> float:
        return self.right / self.asked if self.asked else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval of the share, 95%."""
        if not self.asked:
            return math.nan, math.nan
        z, n, p = 1.959964, self.asked, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def facts(self) -> dict[str, float | int]:
        """The same as plain numbers, for a results file."""
        low, high = self.interval
        return {
            "right": self.right,
            "asked": self.asked,
            "share": round(self.share, 6),
            "low": round(low, 6),
            "high": round(high, 6),
            "chance": round(self.chance, 6),
        }


def draw_choices(keys: Sequence[str], choices: int, seed: int) -> list[list[int]]:
    """For every item its own number, then the numbers of ``choices - 1`` others with keys of their own, at random.

    Items whose key (the name) equals the asked one's are never its distractors, nor are two distractors of one key.
    The draw depends on ``keys``, ``choices`` and ``seed`` only.

    Raises:
        ValueError: Fewer than ``choices`` distinct keys.
    """
    if len(set(keys)) < choices:
        raise ValueError(f"{len(set(keys))} distinct names; a choice among {choices} needs at least as many")
    rng = random.Random(f"choices {seed}")
    drawn = []
    for own, key in enumerate(keys):
        taken, row = {key}, [own]
        while len(row) < choices:
            other = rng.randrange(len(keys))
            if keys[other] not in taken:
                taken.add(keys[other])
                row.append(other)
        drawn.append(row)
    return drawn


def accuracy(scores: Sequence[Sequence[float]]) -> Accuracy:
    """Accuracy where answer 0 is the right one; a tie counts as wrong."""
    right = sum(s[0] > max(s[1:]) for s in scores)
    chance = sum(1 / len(s) for s in scores) / len(scores) if scores else math.nan
    return Accuracy(right, len(scores), chance)


@torch.inference_mode()
def answer_scores(
    model: Transformer,
    questions: Sequence[Question],
    *,
    among: tuple[int, int] | None = None,
    tokens: int = 16384,
    progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """log p(answer | prompt) in nats, summed over the answer's ids, for every answer of every question.

    Args:
        model: A transformer in eval mode.
        questions: Prompts with at least one id, answers with at least one id.
        among: ids ``[start, stop)`` that the probabilities are normalised over; None: the whole vocabulary. Generation
            under a modality mask uses exactly such probabilities.
        tokens: Positions held in the cache at once, about.
        progress: Called with the number of questions answered so far.
    """
    for q in questions:
        if not q.prompt or not all(q.answers):
            raise ValueError("a question's prompt and each of its answers need at least one id")
    scores: list[list[float]] = [[] for _ in questions]
    done = 0
    for batch in _batches(questions, tokens):
        for number, row in zip(batch, _score(model, [questions[i] for i in batch], among), strict=True):
            scores[number] = row
        done += len(batch)
        if progress is not None:
            progress(done)
    return scores


def _batches(questions: Sequence[Question], tokens: int) -> Iterator[list[int]]:
    """Question numbers in batches of like lengths; each holds about ``tokens`` positions, or one question."""
    order = sorted(range(len(questions)), key=lambda i: (len(questions[i].prompt), i))
    batch: list[int] = []
    rows = width = 0
    for i in order:
        prompt, answers = questions[i].prompt, questions[i].answers
        own = len(prompt) + max(map(len, answers))
        longest = max(width, own)
        if batch and (rows + len(answers)) * longest > tokens:
            yield batch
            batch, rows, longest = [], 0, own
        batch.append(i)
        rows, width = rows + len(answers), longest
    if batch:
        yield batch


def _score(model: Transformer, questions: Sequence[Question], among: tuple[int, int] | None) -> list[list[float]]:
    device = next(model.parameters()).device
    longest = max(len(q.prompt) for q in questions)
    answers = [a for q in questions for a in q.answers]
    # An answer's last id is predicted, never read.
    width = max(map(len, answers)) - 1
    prompt_BT = torch.tensor([[PAD] * (longest - len(q.prompt)) + [*q.prompt] for q in questions], device=device)
    lengths_B = torch.tensor([len(q.prompt) for q in questions], device=device)
    position_BT = torch.arange(longest, device=device) - (longest - lengths_B)[:, None]
    document_BT = torch.where(position_BT >= 0, 0, PADDING).int()
    weight = next(model.parameters())
    cache = KVCache(model.config, len(questions), longest + width, device=device, dtype=weight.dtype)
    hidden_BD = model(prompt_BT, document_BT, position_BT, cache)[:, -1]

    rows = torch.tensor([i for i, q in enumerate(questions) for _ in q.answers], device=device)
    hidden_RTD = hidden_BD[rows][:, None]
    target_RT = torch.tensor([[*a] + [PAD] * (width + 1 - len(a)) for a in answers], device=device)
    size_R = torch.tensor([len(a) for a in answers], device=device)
    counts_RT = torch.arange(width + 1, device=device) < size_R[:, None]
    if width:
        cache.select(rows)
        offset_T = torch.arange(width, device=device)
        answer_RT = torch.where(offset_T < size_R[:, None], 0, PADDING).int()
        position_RT = lengths_B[rows][:, None] + offset_T
        hidden_RTD = torch.cat((hidden_RTD, model(target_RT[:, :-1], answer_RT, position_RT, cache)), 1)
    log_p_RT = torch.zeros(target_RT.shape, dtype=torch.float64, device=device)
    log_p_RT[counts_RT] = log_probabilities(model, hidden_RTD[counts_RT], target_RT[counts_RT], among).double()
    sums = iter(log_p_RT.sum(1).tolist())
    return [[next(sums) for _ in q.answers] for q in questions]


def log_probabilities(
    model: Transformer, hidden_ND: Tensor, target_N: Tensor, among: tuple[int, int] | None = None
) -> Tensor:
    """(N,) float32 log p of the targets, normalised over ids ``among``; logits are made in blocks of bounded size."""
    start, stop = among or (0, model.vocabulary_size)
    weight_VD = model.lm_head.weight[start:stop]
    block = max(1, LOGIT_ELEMENTS // (stop - start))
    out = []
    for i in range(0, len(target_N), block):
        logits_NV = torch.nn.functional.linear(hidden_ND[i : i + block], weight_VD).float()
        target_N1 = (target_N[i : i + block] - start)[:, None]
        out.append(logits_NV.gather(1, target_N1)[:, 0] - logits_NV.logsumexp(1))
    return torch.cat(out) if out else hidden_ND.new_zeros(0)
