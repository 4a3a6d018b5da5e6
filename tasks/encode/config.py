"""Configuration of pictures and their encoding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.config import Config


class PicturesConfig(Config):
    """From files to square RGB. A transform is named by version; another version is another fingerprint."""

    transform: Literal["reference-1", "fast-1"] = "reference-1"
    """reference-1: PIL, LANCZOS on the short side, then centre crop; prompts are resized whole and padded white.
    fast-1: the same geometry and colours several times faster, with slightly other pixels (docs/pictures.md)."""


class EncodeConfig(Config):
    """How pictures are turned into codes."""

    batch: int = Field(default=64, ge=1)
    """Pictures a batch, cut from the work item in source order, the last one padded: codes may depend on it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder's convolutions and attention. fp32 is exact everywhere, without TF32. bf16 is for
    hardware that multiplies it, and changes some codes (docs/encoding.md)."""
    compile: bool = False
    """Encode through ``torch.compile``: pays on GPUs; each worker takes a minute longer to start."""
