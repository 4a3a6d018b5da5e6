"""Configuration of pre-training and fine-tuning: hyperparameters, and what is kept and watched."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from infra.config import Config


class OptimizerConfig(Config):
    """AdamW with the paper's figures (section 2.3): no decay on norms and biases, clipping by the global norm."""

    learning_rate: float = Field(default=1e-4, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip: float = Field(default=1.0, gt=0)


class ScheduleConfig(Config):
    """Linear warm-up, then exponential decay to zero (pre-training) or a cosine to zero (fine-tuning)."""

    kind: Literal["exponential", "cosine", "constant"] = "exponential"
    warmup_steps: int = Field(default=4000, ge=0)
    ratio: float = Field(default=0.01, gt=0, lt=1)
    """r of the exponential: after warm-up the rate is peak·(r^t - r)/(1 - r), t from 0 to 1."""


class _SpikeConfig(Config):
    window: int = Field(default=64, ge=8)
    """Steps of the rolling median; the rule is quiet until there were as many."""
    action: Literal["warn", "skip", "rollback"] = "warn"
    """warn: say so; skip: do not let the optimizer take this step; rollback: go on from a checkpoint of before, and
    pass over the sequences from there to here."""


class LossSpikeConfig(_SpikeConfig):
    """A step whose loss is far above the last steps'."""

    factor: float = Field(default=1.5, gt=1)
    """Multiple of the rolling median above which it counts."""


class GradientSpikeConfig(_SpikeConfig):
    """A step whose gradients' norm, before clipping, is far above the last steps'."""

    factor: float = Field(default=4.0, gt=1)
    """Multiple of the rolling median above which it counts."""


class OutputNormConfig(Config):
    """Growth of the norm of the last layer's output, which the paper saw long before a run diverged."""

    window: int = Field(default=1000, ge=8)
    """Steps that a straight line is fitted to."""
    growth: float = Field(default=1.0, gt=0)
    """Growth of that line in 1,000 steps, relative to the window's mean, above which the rule fires."""
    after: int = Field(default=5000, ge=0)
    """Steps at the beginning that are left out: the norm grows fast there, as it should."""
    action: Literal["warn", "rollback"] = "warn"
    """No single step is to blame, so that none can be skipped."""


class GuardConfig(Config):
    """What is done about a training that goes astray. A loss or gradient that is not finite always stops it, before the
    optimizer moves."""

    loss: LossSpikeConfig = LossSpikeConfig()
    gradients: GradientSpikeConfig = GradientSpikeConfig()
    output_norm: OutputNormConfig = OutputNormConfig()
    rollback_steps: int = Field(default=0, ge=0)
    """The checkpoint that a rollback goes to is older by at least so many steps than the first one of what was seen
    (a spike's step, or the window of the output norm)."""
    max_rollbacks: int = Field(default=3, ge=0)
    """When a rule asks for one more, training stops."""

    @property
    def rolls_back(self) -> bool:
        return "rollback" in self.actions.values()

    @property
    def actions(self) -> dict[str, str]:
        """What is done, by the rule's name."""
        return {"loss": self.loss.action, "gradients": self.gradients.action, "output_norm": self.output_norm.action}


class RampConfig(Config):
    """A smaller batch at the beginning of a run."""

    until: int = Field(ge=1)
    """Sequences of the whole run after which it ends; best a multiple of the batch, or its last step is short."""
    batch: int = Field(ge=1)


class ContinueConfig(Config):
    """A checkpoint of another training, to go on from."""

    training: str = Field(pattern=r"^[a-z]+/[0-9a-f]{12}$")
    """Its folder in the work folder: ``pretrain/0123456789ab``."""
    step: int = Field(ge=0)
    """Steps done in the checkpoint, which must be one that is kept."""


class _Run(Config):
    batch: int = Field(ge=1)
    """Sequences a step, over all workers."""
    batch_ramp: list[RampConfig] = []
    """Smaller batches that come before, with rising ``until``."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    attention: Literal["document", "sequence"] = "document"
    """document: a token sees its own document only (block-diagonal); sequence: everything before it in its sequence, as
    one row. The labels are the same: no document predicts how the next one begins."""
    z_loss: float = Field(default=1e-5, ge=0)
    image_weight: float = Field(default=1.0, gt=0)
    """Weight of a picture's labels in the loss, a text's being 1, which is Chameleon's. Captions are a few percent of a
    pair's tokens; a short training learns to read pictures sooner when they weigh more than that."""
    guard: GuardConfig = GuardConfig()
    skip: list[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]] = []
    """Intervals ``[first, end]`` of the run's positions, sequences in training's order, that are passed over: ``first``
    is, ``end`` is not. Those that lie behind where training begins or goes on change nothing."""
    continue_from: ContinueConfig | None = None
    """Begin with the weights, moments, place in the data and steps of another training over the same mixture, in which
    batch, rates or rules were others. The model must be the same."""
    checkpoint_every: int = Field(default=1000, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest ones that are kept."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints of a multiple of so many steps are kept for ever, as well."""
    evaluate_every: int = Field(default=1000, ge=1)
    """Steps between held-out losses by source and modality."""
    evaluate_sequences: int = Field(default=64, ge=1)
    """Held-out sequences used for each of those."""

    @field_validator("batch_ramp")
    @classmethod
    def _rises(cls, ramp: list[RampConfig]) -> list[RampConfig]:
        untils = [phase.until for phase in ramp]
        if any(a >= b for a, b in pairwise(untils)):
            raise ValueError(f"`until` must rise from one entry to the next; found {untils}")
        return ramp

    @field_validator("skip")
    @classmethod
    def _forward(cls, skip: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if wrong := [[first, end] for first, end in skip if first >= end]:
            raise ValueError(f"{wrong[0]} is no interval; expected [first, end] with first < end")
        return skip

    @model_validator(mode="after")
    def _can_roll_back(self) -> _Run:
        """A rollback needs a checkpoint of before what its rule looked at; ``keep_every`` keeps one, however far."""
        if self.keep_every is not None:
            return self
        reach = (self.keep_checkpoints - 1) * self.checkpoint_every
        windows = {"loss": 1, "gradients": 1, "output_norm": self.guard.output_norm.window}
        for rule, action in self.guard.actions.items():
            needed = windows[rule] - 1 + self.guard.rollback_steps
            if action == "rollback" and reach < needed:
                keep = 1 + -(-needed // self.checkpoint_every)
                raise ValueError(
                    f"guard.{rule} rolls back by {needed} steps or more (its window and guard.rollback_steps), and the "
                    f"oldest checkpoint may be only {reach} steps back: keep_checkpoints is {self.keep_checkpoints} "
                    f"and checkpoint_every {self.checkpoint_every}. Set keep_checkpoints: {keep}, or keep_every"
                )
        return self


class PretrainConfig(_Run):
    """One pass over the plan's stages in order; dropout is the model's."""

    batch: int = Field(default=2048, ge=1)


class FinetuneConfig(_Run):
    """Supervised fine-tuning: loss on answers only, modality-balanced (paper, section 3)."""

    batch: int = Field(default=32, ge=1)
    epochs: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
    schedule: ScheduleConfig = ScheduleConfig(kind="cosine", warmup_steps=0)
