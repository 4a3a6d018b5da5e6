"""Configuration of what is imported instead of being trained."""

from __future__ import annotations

from pydantic import Field

from infra.config import Config


class ImageTokenizerImport(Config):
    """An image tokenizer that somebody else trained; with ``file`` set, the step ``image-tokenizer`` trains nothing."""

    file: str | None = None
    """A ``vqgan.ckpt`` in the layout of taming-transformers, a safetensors file, or a folder of ``transformers``
    (a ``ChameleonVQVAE``, or a whole Chameleon) or of Calumma; relative to the recipe's folder, or on ``s3://``.
    ``image_tokenizer`` must say what its architecture is."""
    config: str | None = None
    """taming's YAML or ``config.json``, where it does not lie beside the weights (docs/image-tokenizer-weights.md)."""
    encoder_only: bool = False
    """Accept weights without a decoder, as ``transformers``' are: pictures can be encoded, and none can be drawn."""
    pictures: int = Field(default=32, ge=0)
    """Held-out pictures whose reconstructions are measured, and training pictures whose codes are counted."""


class ModelImport(Config):
    """A transformer that somebody else trained, as the start of pre-training or in its place."""

    path: str | None = None
    """A folder of ``transformers`` (a whole Chameleon), of the original layout (``consolidated.pth`` or its shards, and
    ``params.json``) or of Calumma; relative to the recipe's folder, or on ``s3://``. ``model`` must say what its
    architecture is, and both tokenizers should be imported with it: its weights mean nothing to others."""
    train: bool = False
    """False: the step ``pretrain`` takes the weights as they are, for fine-tuning to start from; true: it goes on from
    them, over the whole plan and from the schedule's beginning."""
