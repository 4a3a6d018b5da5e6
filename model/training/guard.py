"""What stops a training before harm is done, and the rules for what looks like harm to come.

A step is judged when its loss and its gradients' norm are known and the optimizer has not moved. All ranks judge the
same figures and come to the same findings. The rolling medians and windows are part of a checkpoint, so that an
interrupted training finds what an undisturbed one finds.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from infra.errors import CalummaError
from model.data.loader import Place
from model.training.config import GradientSpikeConfig, GuardConfig, LossSpikeConfig, OutputNormConfig

Action = Literal["warn", "skip", "rollback"]
Rule = Literal["loss", "gradients", "output_norm"]
SEVERITY: tuple[Action, ...] = ("warn", "skip", "rollback")


class NonFiniteError(CalummaError):
    """The loss or the gradients are NaN or infinite. The optimizer has not moved; the last checkpoint is good."""

    @classmethod
    def of(cls, what: str, step: int, sequences: Sequence[int], place: Place) -> NonFiniteError:
        shown = ", ".join(map(str, sequences[:32])) + (" …" if len(sequences) > 32 else "")
        first = f" --sequence {sequences[0]}" if sequences else ""
        return cls(
            f"step {step}: {what}; the optimizer has not moved. The batch held sequences {shown} of stage "
            f"{place.stage}: look at one with `calumma inspect {place.folder}{first}`. Lower the learning rate, turn "
            "on qk_norm and z_loss, or pass over this batch: set "
            f"{place.run}.skip: [[{place.start}, {place.stop}]] and {place.run}.continue_from to this training's last "
            "checkpoint."
        )


class RollbackError(CalummaError):
    """A rule asks for a rollback, and none is possible or allowed. The optimizer has not moved."""


@dataclass(frozen=True)
class Finding:
    """A rule that fired."""

    rule: Rule
    action: Action
    step: int
    """The step that was judged, from 1."""
    since: int
    """The first step of what the rule looked at and found wrong."""
    value: float
    """The step's loss, norm of gradients, or norm of the output."""
    ratio: float
    """Multiple of the rolling median; for the output norm its relative growth in 1,000 steps."""

    def __str__(self) -> str:
        if self.rule == "output_norm":
            return f"step {self.step}: the output norm, {self.value:.4g}, grows by {self.ratio:.1%} in 1,000 steps"
        what = "the loss" if self.rule == "loss" else "the gradient norm"
        return f"step {self.step}: {what}, {self.value:.4g}, is {self.ratio:.1f} times its rolling median"


@dataclass(frozen=True)
class Rollback:
    """A rollback that was made: why, and from where to where."""

    rule: str
    ratio: float
    step: int
    """The step whose optimizer step was not taken."""
    to: int
    """Steps done in the checkpoint that training went on from."""
    start: int
    """First position of the run that is passed over."""
    stop: int
    """Position after the last one."""


class Guard:
    """The rules of a recipe, with what they remember and what they have done. Its state is part of a checkpoint."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._loss, self._gradients = _Median(config.loss), _Median(config.gradients)
        self._output_norm = _Slope(config.output_norm)
        self.skipped = 0
        """Steps that the optimizer did not take because a rule said ``skip``."""
        self.rollbacks: list[Rollback] = []

    def judge(self, step: int, loss: float, gradients: float, output_norm: float) -> list[Finding]:
        """Notes step ``step``'s finite figures (steps count from 1); the rules that fire, the gravest last."""
        config = self._config
        checks: tuple[tuple[Rule, Action, float, tuple[int, float] | None], ...] = (
            ("loss", config.loss.action, loss, self._loss.note(step, loss)),
            ("gradients", config.gradients.action, gradients, self._gradients.note(step, gradients)),
            ("output_norm", config.output_norm.action, output_norm, self._output_norm.note(step, output_norm)),
        )
        found = [Finding(rule, action, step, hit[0], value, hit[1]) for rule, action, value, hit in checks if hit]
        found.sort(key=lambda finding: SEVERITY.index(finding.action))
        if found and found[-1].action == "skip":
            self.skipped += 1
        return found

    def silent(self, total: int) -> list[str]:
        """A line for each rule that needs more steps than a training of ``total`` has, and so can never fire."""
        config = self._config
        needs = {"output_norm": config.output_norm.after + config.output_norm.window}
        needs |= {"loss": config.loss.window + 1, "gradients": config.gradients.window + 1}
        return [
            f"guard.{rule} can never fire: it needs {needed:,} steps, and this training has {total:,}"
            for rule, needed in needs.items()
            if needed > total
        ]

    def last_good(self, finding: Finding) -> int:
        """The most steps that a checkpoint may have done to be good in spite of a finding; negative: none is.

        Raises:
            RollbackError: as many rollbacks as the recipe allows have been made.
        """
        if len(self.rollbacks) >= self._config.max_rollbacks:
            past = "; ".join(f"step {r.step} to {r.to} ({r.rule})" for r in self.rollbacks) or "none"
            raise RollbackError(
                f"{finding}. Rollbacks so far: {past}; guard.max_rollbacks = {self._config.max_rollbacks} allows no "
                "more. The optimizer has not moved. Lower the learning rate, turn on qk_norm and z_loss, or set the "
                f"action of guard.{finding.rule} to another one."
            )
        return finding.since - 1 - self._config.rollback_steps

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "loss": list(self._loss.window),
            "gradients": list(self._gradients.window),
            "output_norm": list(self._output_norm.window),
            "skipped": self.skipped,
            "rollbacks": [asdict(rollback) for rollback in self.rollbacks],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for rule in (self._loss, self._gradients, self._output_norm):
            rule.window.clear()
        self._loss.window.extend(state["loss"])
        self._gradients.window.extend(state["gradients"])
        self._output_norm.window.extend(state["output_norm"])
        self.skipped = state["skipped"]
        self.rollbacks = [Rollback(**rollback) for rollback in state["rollbacks"]]


class _Median:
    """Values above a multiple of their rolling median. Quiet until the window is full.

    A spike enters the window too: where values stay high they become what is usual, and the rule falls silent.
    """

    def __init__(self, config: LossSpikeConfig | GradientSpikeConfig) -> None:
        self._factor = config.factor
        self.window: deque[float] = deque(maxlen=config.window)

    def note(self, step: int, value: float) -> tuple[int, float] | None:
        full = len(self.window) == self.window.maxlen
        median = statistics.median(self.window) if full else math.inf
        self.window.append(value)
        return (step, value / median) if median > 0 and value > self._factor * median else None


class _Slope:
    """Growth along a straight line fitted to a window. Once it has fired, the window fills up anew."""

    def __init__(self, config: OutputNormConfig) -> None:
        self._config = config
        self.window: deque[float] = deque(maxlen=config.window)

    def note(self, step: int, value: float) -> tuple[int, float] | None:
        if step <= self._config.after:
            return None
        self.window.append(value)
        count = len(self.window)
        if count < self._config.window:
            return None
        y_N = np.array(self.window)
        x_N = np.arange(count) - (count - 1) / 2
        growth = 1000 * float(x_N @ y_N / (x_N @ x_N)) / float(y_N.mean())  # least squares, x centred
        if growth <= self._config.growth:
            return None
        self.window.clear()
        return step - count + 1, growth
