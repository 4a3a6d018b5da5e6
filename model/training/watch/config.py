"""Configuration of what is looked at while the transformer trains."""

from __future__ import annotations

from pydantic import Field

from infra.config import Config


class WatchConfig(Config):
    """What is looked at while the transformer trains. It changes nothing that is trained, and no fingerprint."""

    every: int = Field(default=20, ge=0)
    """Steps between two looks inside: attention logits, sizes of updates, memory; 0: never."""
    attention_positions: int = Field(default=64, ge=1)
    """Positions of a sequence, about, whose attention logits are looked at; of all heads and layers."""
