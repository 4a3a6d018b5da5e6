"""Configuration of the image tokenizer and of its training."""

from __future__ import annotations

from pydantic import Field, model_validator

from infra.config import Config


class ImageTokenizerConfig(Config):
    """A taming-style VQ-GAN. The defaults are Chameleon's: 512x512 to 32x32 codes of 8,192 (paper, section 2.1)."""

    resolution: int = 512
    """Side of the square input, pixels."""
    codes: int = 8192
    """Entries of the codebook; must equal ``vocabulary.image_codes``."""
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channel multiplier by level; each level after the first halves the side."""
    residual_blocks: int = 2
    z_channels: int = 256
    embed_dim: int = 256

    @property
    def downsampling(self) -> int:
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def grid(self) -> int:
        """Codes along one side."""
        return self.resolution // self.downsampling

    @property
    def codes_per_image(self) -> int:
        return self.grid**2

    @model_validator(mode="after")
    def _check(self) -> ImageTokenizerConfig:
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution is {self.resolution}; {len(self.multipliers)} levels halve it {len(self.multipliers) - 1} "
                f"times, so it must be a multiple of {self.downsampling}"
            )
        return self


class ImageTokenizerTraining(Config):
    """How the image tokenizer is trained."""

    steps: int = Field(default=800_000, ge=1)
    batch: int = Field(default=128, ge=1)
    """Pictures a step, over all workers."""
    learning_rate: float = Field(default=5e-6, gt=0)
    discriminator_learning_rate: float = Field(default=4.5e-6, gt=0)
    betas: tuple[float, float] = (0.5, 0.9)
    warmup_steps: int = Field(default=0, ge=0)
    codebook_weight: float = 1.0
    commitment_beta: float = 0.25
    perceptual_weight: float = 1.0
    discriminator_weight: float = 0.8
    discriminator_start: int = 250_001
    """Step from which the discriminator trains and its loss counts; a value past ``steps`` switches it off."""
    revive_after: int = Field(default=0, ge=0)
    """A code that won nothing for this many steps restarts at an encoder output; 0: never."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the averaged weights that are kept; 0: the last weights are kept."""
    checkpoint_every: int = Field(default=1000, ge=1)
