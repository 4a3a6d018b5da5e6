"""Configuration of scanning and selection."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from infra.config import Config
from tasks.scan.languages import CODES, UNDETERMINED

NAME = r"^[a-z0-9][a-z0-9_-]*$"


class PlugIn(Config):
    """A filter of one's own: a class with ``reason(sample, facts)``, see ``tasks/scan/filters.py``."""

    type: str
    """Import path, ``package.module:Class``."""
    options: dict[str, Any] = {}


class ScorerConfig(Config):
    """A scorer of pictures, alone or with their texts; see ``tasks/scan/scorers.py``."""

    name: str = Field(pattern=NAME)
    type: str
    """``nsfw``, which comes with Calumma, or an import path ``package.module:Class``."""
    weights: str | None = None
    """The model's file, relative to the recipe's folder or on ``s3://``."""
    options: dict[str, Any] = {}
    min: float | None = None
    """A sample that has a picture with a lower score is filtered as ``score-NAME``."""
    max: float | None = None
    """A sample that has a picture with a higher score is filtered as ``score-NAME``."""

    @model_validator(mode="after")
    def _check(self) -> ScorerConfig:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(
                f"scorer {self.name!r}: `min` is {self.min:g} and `max` is {self.max:g}, so that no picture could "
                "stay; `min` must not be above `max`"
            )
        return self


class BenchmarkConfig(Config):
    """Texts that no training sample may quote: filtered as ``benchmark-NAME``. See ``tasks/scan/overlap.py``."""

    name: str = Field(pattern=NAME)
    path: str
    """JSONL (``.jsonl``, also ``.gz``), else plain text with an item a line; relative to the recipe's folder or s3."""
    fields: tuple[str, ...] | None = None
    """Fields of a JSONL line that hold texts, or lists of texts; None: every field that does."""
    ngram: int = Field(default=13, ge=2)
    """Words that must agree in a row."""
    min_overlap: float = Field(default=1, gt=0)
    """1 or more: so many of the sample's n-grams must occur in the set; below 1: this share of them."""
    min_words: int = Field(default=8, ge=1)
    """An item shorter than ``ngram`` words is looked for whole, unless it has fewer words than this."""


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
    """Of a pair's longest caption."""
    max_caption_chars: int | None = Field(default=None, ge=1)
    """Of a pair's longest caption."""
    min_text_chars: int | None = Field(default=None, ge=1)
    """Of all of a text's or document's texts together."""
    max_text_chars: int | None = Field(default=None, ge=1)
    language: bool = False
    """Record the language of every sample; ``languages`` implies it."""
    languages: tuple[str, ...] | None = None
    """Codes that may stay, of ``tasks/scan/languages.py``, or ``und``."""
    min_language_score: float = Field(default=0.5, ge=0, le=1)
    """A text whose language is less certain is ``und``, undetermined."""
    language_chars: int = Field(default=2000, ge=1)
    """The language is told from so many characters at the start."""
    licences: tuple[str, ...] | None = None
    """Licences that may stay, as patterns (``CC BY*``), whatever the case; of the sample, else of its source."""
    filters: tuple[PlugIn, ...] = ()
    scorers: tuple[ScorerConfig, ...] = ()
    faces: bool = False
    """Find faces and record their boxes."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    near_duplicates: bool = False
    """Compute what ``select.near_duplicates`` needs."""

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...] | None) -> tuple[str, ...] | None:
        unknown = sorted({*languages} - CODES - {UNDETERMINED}) if languages is not None else []
        if unknown:
            raise ValueError(
                f"`languages` has {', '.join(map(repr, unknown))}, which no text is told to be in; expected codes like "
                f"'en', of {', '.join(sorted(CODES))}, or {UNDETERMINED!r}"
            )
        return languages

    @model_validator(mode="after")
    def _check(self) -> ScanConfig:
        for what, names in (("scorers", self.scorers), ("benchmarks", self.benchmarks)):
            known = [entry.name for entry in names]
            if len(set(known)) != len(known):
                raise ValueError(f"two {what} have the same name: {', '.join(sorted(known))}")
        return self


class SelectConfig(Config):
    """Across each whole source: of equal samples the one with the lowest id stays."""

    exact_duplicates: bool = True
    perceptual_duplicates: bool = False
    """Also drop pairs whose pictures have an equal 64-bit perceptual hash."""
    near_duplicates: bool = False
    """Also drop texts and interleaved documents that say nearly the same; needs ``scan.near_duplicates``."""
    memory_mb: int = Field(default=1024, ge=128)
    """What the search for duplicates may hold in memory; the rest goes to ``scratch`` in the work folder."""


Device = Literal["cpu", "cuda"]
