"""Configuration of scanning and selection."""

from __future__ import annotations

from pydantic import Field

from infra.config import Config


class ScanConfig(Config):
    """Work items and per-sample checks. A filter left at None is off; each one's count is in the ledger."""

    item_samples: int = Field(default=8192, ge=1)
    """Target samples a work item."""
    held_out: float = Field(default=0.001, ge=0, lt=1)
    """Share of samples held out, by hash of the sample's content: equal pictures and texts fall on one side."""
    max_pixels: int = Field(default=178_956_970, ge=1)
    """A picture that declares more is quarantined before it is decoded."""
    min_side: int | None = Field(default=None, ge=1)
    max_aspect: float | None = Field(default=None, ge=1)
    min_caption_chars: int | None = Field(default=None, ge=1)
    min_text_chars: int | None = Field(default=None, ge=1)


class SelectConfig(Config):
    """Across each whole source: of equal samples the one with the lowest id stays."""

    exact_duplicates: bool = True
    perceptual_duplicates: bool = False
    """Also drop pictures with an equal 64-bit perceptual hash."""
    removal_list: str | None = None
    """A text file of sample ids (hex), one a line, that must not be used."""
