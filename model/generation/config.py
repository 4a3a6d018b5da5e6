"""Configuration of generation."""

from __future__ import annotations

from pydantic import Field

from infra.config import Config


class GenerationConfig(Config):
    """Sampling by modality: each token's modality decides which of these apply."""

    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.9, gt=0, le=1)
    image_temperature: float = Field(default=1.0, ge=0)
    image_top_p: float = Field(default=0.9, gt=0, le=1)
    image_guidance: float = Field(default=1.0, ge=0)
    """Classifier-free guidance for picture tokens: uncond + g·(full - uncond); 1 is off."""
    max_text_tokens: int = Field(default=128, ge=1)
    max_images: int = Field(default=1, ge=0)
