"""Configuration of evaluation."""

from __future__ import annotations

from pydantic import Field

from infra.config import Config


class EvaluationConfig(Config):
    """Choice by likelihood, drawing and captioning on the pairs of one source."""

    source: str | None = None
    """Source of kind pairs; None: the first one."""
    choices: int = Field(default=10, ge=2)
    pictures: int = Field(default=200, ge=1)
    """Pictures asked about, of the trained-on ones; of the held-out ones at most as many."""
    drawings: int = Field(default=50, ge=0)
    captions: int = Field(default=16, ge=0)
    losses: int = Field(default=64, ge=1)
    """Held-out sequences a source for the final losses."""
