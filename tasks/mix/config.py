"""Configuration of the mixture: stages, weights, packing."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from infra.config import Config

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Reason = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Conditions = dict[Reason, str]
"""By the name under which the ledger counts what is left out: SQL over one document's columns, asked in this order.

What does not make all of them true is left out. ``docs/mixture.md`` lists the columns.
"""


class StageConfig(Config):
    """One stage of pre-training. Weights are shares of tokens; they are normalised within their group."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    share: float = Field(gt=0, le=1)
    """Of the whole training's tokens."""
    weights: dict[str, Weight] = {}
    """Sources that are new in this stage, by weight."""
    earlier: float = Field(default=0.0, ge=0, le=1)
    """Share of this stage's tokens that the first stage's sources fill, in the first stage's proportions."""
    hold_image_share: bool = False
    """Solve the new sources' weights for the first stage's image share, as near to the given weights as possible."""

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if re.fullmatch(r"epoch-\d+|held-out-.*", self.name):
            raise ValueError(
                f"stage {self.name!r}: {self.name!r} is the name of a packing of fine-tuning or of held-out documents, "
                "and `calumma tokens` would write both to one folder; choose another"
            )
        if self.earlier < 1 and not any(self.weights.values()):
            raise ValueError(
                f"stage {self.name!r}: sources without `weights` fill only its `earlier` share, {self.earlier:g}; "
                "name at least one source with a weight above 0"
            )
        return self


class MixConfig(Config):
    """Plan, packing and order of pre-training; packing of fine-tuning."""

    tokens: int = Field(ge=1)
    """Tokens of pre-training over all stages, padding not counted."""
    sequence_length: int = Field(default=4096, ge=16)
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    where: dict[str, Conditions] = {}
    """By source: which of its documents pre-training may use, all stages alike."""
    max_passes: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How often any source may be gone through over all of pre-training; a plan that needs more is refused."""
    window: int = Field(default=131_072, ge=1)
    """Documents that best-fit packing looks at together."""
    slice_sequences: int = Field(default=1_048_576, ge=1)
    """Sequences a slice: each slice holds every source's proportional share."""
    file_sequences: int = Field(default=32_768, ge=1)
    held_out_sequences: int = Field(default=1024, ge=1)
    """At most this many held-out sequences a source."""

    @model_validator(mode="after")
    def _check(self) -> MixConfig:
        total = sum(s.share for s in self.stages)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the stages' shares sum to {total:g}; they must sum to 1")
        if self.stages[0].earlier or self.stages[0].hold_image_share:
            raise ValueError(
                "the first stage has no earlier sources: it can have neither `earlier` nor `hold_image_share`"
            )
        if len({s.name for s in self.stages}) != len(self.stages):
            raise ValueError("two stages have the same name")
        return self


class FinetuneMixConfig(Config):
    """Which conversations, and how their categories are balanced."""

    sources: tuple[str, ...]
    """Sources of kind messages."""
    where: dict[str, Conditions] = {}
    """By source: which of its conversations fine-tuning may use."""
    weights: dict[str, Weight] = {}
    """Weight of answer tokens by category, then normalised; one not named weighs its natural share."""
    epochs: int = Field(default=2, ge=1)
    """Passes that are packed, each with as many answer tokens as all conversations together, in these shares.
    Where `finetune.epochs` is more, they are gone through again in another order."""
