"""Configuration of evaluation."""

from __future__ import annotations

from pydantic import Field, field_validator

from infra.config import Config


class EvaluationConfig(Config):
    """Choice by likelihood, drawing and captioning on the pairs of one source."""

    source: str | None = None
    """Source of kind pairs; None: the first one."""
    choices: int = Field(default=10, ge=2)
    pictures: int = Field(default=200, ge=1)
    """Pictures asked about, of the trained-on ones; of the held-out ones at most as many."""
    drawings: int = Field(default=50, ge=0)
    """Trained-on names that a picture is asked for; of the held-out ones a fifth as many."""
    neighbours: int = Field(default=20_000, ge=1)
    """Training pictures that drawings are compared with, at most."""
    captions: int = Field(default=16, ge=0)
    """Pictures captioned, of the trained-on and of the held-out ones each."""
    replies: int = Field(default=2, ge=0)
    """Held-out conversations a category that are answered, for people to read."""
    losses: int = Field(default=64, ge=1)
    """Held-out sequences a source for the final losses."""
    question: str = "What is this?"
    """What the chat form asks about a picture; the answer is its name."""
    request: str = "Draw: {name}"
    """How the chat form asks for a picture."""

    @field_validator("request")
    @classmethod
    def _names(cls, request: str) -> str:
        if request.count("{") != 1 or request.count("}") != 1 or "{name}" not in request:
            raise ValueError("it must hold {name} once, where the name goes, and no other braces")
        return request
