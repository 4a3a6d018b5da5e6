"""Configuration of the mixture: stages, weights, packing."""

from __future__ import annotations

from pydantic import Field, model_validator

from infra.config import Config


class StageConfig(Config):
    """One stage of pre-training. Weights are shares of tokens; they are normalised within their group."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    share: float = Field(gt=0, le=1)
    """Of the whole training's tokens."""
    weights: dict[str, float] = {}
    """Sources that are new in this stage, by weight."""
    earlier: float = Field(default=0.0, ge=0, le=1)
    """Share of this stage's tokens that the first stage's sources fill, in the first stage's proportions."""
    hold_image_share: bool = False
    """Solve the new sources' weights for the first stage's image share, as near to the given weights as possible."""


class MixConfig(Config):
    """Plan, packing and order of pre-training; packing of fine-tuning."""

    tokens: int = Field(ge=1)
    """Tokens of pre-training over all stages, padding not counted."""
    sequence_length: int = Field(default=4096, ge=16)
    stages: tuple[StageConfig, ...]
    window: int = Field(default=10_000, ge=1)
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
        if self.stages[0].earlier:
            raise ValueError("the first stage has no earlier sources: its `earlier` must be 0")
        return self


class FinetuneMixConfig(Config):
    """Which conversations, and how their categories are balanced."""

    sources: tuple[str, ...]
    """Sources of kind messages."""
    weights: dict[str, float] = {}
    """Share of answer tokens by category; a category not named keeps its natural share. Empty: all natural."""
