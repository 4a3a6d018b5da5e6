"""One optimizer step: the global batch's micro-batches forward and backward, judged, then taken or not.

The loss is the (weighted) mean over all counted labels of the *global* batch, however that is spread over ranks and
micro-batches. Loss, gradients' norm and output norm are known on all ranks before the optimizer moves: what is not
finite ends the training there, and the guard's rules decide there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from infra.errors import CalummaError
from model.data.batch import IGNORE, Batch
from model.data.loader import Place
from model.training.engine import ask_before_steps
from model.training.guard import Finding, Guard, NonFiniteError
from model.training.module import figures_of
from model.training.optimizer import set_learning_rate


@dataclass(frozen=True)
class Taken:
    """What a step came to; the same on all ranks."""

    sums: dict[str, float]
    """What the module's ``sums`` name, over the global batch."""
    norm: float
    """L2 norm of the gradients before clipping."""
    findings: list[Finding]
    """The rules that fired, the gravest last."""

    @property
    def stop(self) -> bool:
        """Whether the training was asked to stop."""
        return self.sums["stop"] > 0

    @property
    def rollback(self) -> Finding | None:
        """The finding that asks for a rollback; the optimizer has not moved."""
        return next((f for f in reversed(self.findings) if f.action == "rollback"), None)


class Stepper:
    """Takes optimizer steps with a DeepSpeed engine around a :class:`TrainingModule`. All ranks call it together."""

    def __init__(self, engine: Any, guard: Guard, *, seed: int, dropout: bool, image_weight: float) -> None:
        self._engine, self._guard = engine, guard
        self._seed, self._dropout, self._image_weight = seed, dropout, image_weight
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._number = 0
        self._norm: float | None = None
        """Of the step's gradients; None: not asked about yet."""
        self._sums: dict[str, float] = {}
        self._findings: list[Finding] = []
        ask_before_steps(engine, self._allow)

    def take(
        self, micros: Sequence[Batch], step: int, rate: float, place: Place, should_stop: Callable[[], bool]
    ) -> Taken:
        """Takes the step after ``step`` steps at a learning rate, or does not.

        Raises:
            NonFiniteError: on all ranks; the optimizer has not moved. It says that the data is from ``place``.
        """
        engine, device, names = self._engine, self._engine.device, self._engine.module.sums
        set_learning_rate(engine.optimizer, rate)
        weight = torch.tensor(sum(self._weight(m) for m in micros), dtype=torch.float64, device=device)
        dist.all_reduce(weight)
        # DeepSpeed divides by the micro-batches and averages over the ranks; we want the mean over counted labels.
        scale = len(micros) * self._world / max(1.0, float(weight))
        if engine.gradient_accumulation_steps() != len(micros):  # the batch grows
            rows = len(micros[0]["tokens"])
            engine.set_train_batch_size(len(micros) * rows * self._world)
        sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self._number, self._norm, self._findings = step + 1, None, []
        for number, micro in enumerate(micros):
            # DeepSpeed would count micro-batches since its start: in a batch that grew the count is out of step.
            engine.set_gradient_accumulation_boundary(number == len(micros) - 1)
            if self._dropout:
                torch.manual_seed(_seed(self._seed, step, number, self._rank))
            total, figures = engine(micro)
            sums += figures
            engine.backward(total * scale)
            if number == len(micros) - 1:
                if self._rank == 0 and should_stop():
                    sums[-1] = 1
                dist.all_reduce(sums)
                if not bool(sums.isfinite().all()):
                    raise self._not_finite("the loss is not finite", micros, place)
                self._sums = dict(zip(names, sums.tolist(), strict=True))
            engine.step()
        if self._norm is None and engine.was_step_applied():
            raise CalummaError(
                f"step {self._number}: DeepSpeed took the step without asking, so that nothing guarded it. Remove what "
                "resources.deepspeed says beyond bucket sizes and offloading, and go on from the last checkpoint."
            )
        if self._norm is None or not (math.isfinite(self._norm) and self._norm >= 0):
            raise self._not_finite("the gradients are not finite", micros, place)
        return Taken(self._sums, self._norm, self._findings)

    def _allow(self, norm: float) -> bool:
        """Whether the optimizer may move; asked from inside the engine's step."""
        self._norm = norm
        if not (math.isfinite(norm) and norm >= 0):  # DeepSpeed says -1 where a part of the gradients is not finite
            return False
        figures = figures_of(self._sums)
        self._findings = self._guard.judge(self._number, figures["loss"], norm, figures["output_norm"])
        return all(finding.action == "warn" for finding in self._findings)

    def _weight(self, micro: Batch) -> float:
        """The summed weight of a micro-batch's counted labels."""
        counted = micro["labels"] != IGNORE
        images = int((counted & micro["image"]).sum())
        return int(counted.sum()) - images + images * self._image_weight

    def _not_finite(self, what: str, micros: Sequence[Batch], place: Place) -> NonFiniteError:
        mine = [int(s) for m in micros for s in m["sequences"].tolist() if s >= 0]
        everyone: list[list[int]] = [[] for _ in range(self._world)]
        dist.all_gather_object(everyone, mine)
        return NonFiniteError.of(what, self._number, sorted(s for part in everyone for s in part), place)


def _seed(*numbers: int) -> int:
    """A seed for torch from (seed, step, micro-step, rank): 63 bits of their hash."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
