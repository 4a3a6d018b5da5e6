"""Configuration of the text tokenizer; its size is what the vocabulary leaves for text."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat

from infra.config import Config


class TextTokenizerConfig(Config):
    """SentencePiece BPE: byte fallback, digits one by one, white space kept (paper, section 2.1)."""

    file: str | None = None
    """Import this instead of training: a ``tokenizer.json`` of the ``tokenizers`` library, laid out as ``vocabulary``
    says, or a SentencePiece BPE ``.model``; relative to the recipe's folder or on ``s3://``."""
    lossy: bool = False
    """Accept an imported ``tokenizer.json`` that does not give back every text as it was."""
    code: tuple[str, ...] = ()
    """Sources whose texts are program code; the report shows their fertility apart. It decides nothing else."""
    sample_bytes: int = Field(default=1_000_000_000, ge=1)
    """UTF-8 bytes of text to train on, over all sources."""
    weights: dict[str, NonNegativeFloat] = {}
    """Share of the sample by source; a source not named gets weight 1, and one with 0 is left out."""
    max_sentence_bytes: int = Field(default=4192, ge=64)
    """Longer texts are cut into sentences of at most this many bytes for training."""
    character_coverage: float = Field(default=0.9995, ge=0.98, le=1)
    """Share of all characters that become pieces; the rarest are spelt in bytes. SentencePiece takes no less."""
