"""Configuration of a source: what it is, where it lies, what licence it carries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from infra.config import Config

Kind = Literal["pairs", "text", "interleaved", "messages", "tokens"]


class ExpectedConfig(Config):
    """A source's size as its owner states it; decides nothing but what ``calumma plan`` says."""

    samples: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)
    """Stored size of what is read."""
    files: int | None = Field(default=None, ge=1)
    pictures: int | None = Field(default=None, ge=1)
    """Where a sample may hold several or none; a pair holds one."""
    tokens: int | None = Field(default=None, ge=1)
    """Text tokens, pictures not counted."""


class SourceConfig(Config):
    """One source. ``type`` names a reader in ``tasks/sources`` or is an import path ``package.module:Class``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    type: str
    kind: Kind
    """pairs: a picture and captions; text; interleaved: texts and pictures in order; messages: prompts and answers;
    tokens: documents that are token ids already."""
    path: str | None = None
    """Folder or file the reader starts from, on a disk or ``s3://``; relative paths start at the recipe's folder."""
    options: dict[str, Any] = {}
    """The reader's own options."""
    licence: str = "unknown"
    """Used where a sample names none."""
    missing_images: Literal["quarantine", "drop"] = "quarantine"
    """An interleaved document of which a picture is missing or unreadable: to quarantine, or kept without the picture;
    dropped pictures are counted and recorded with the sample."""
    expected: ExpectedConfig = ExpectedConfig()
    """How much there is, for ``calumma plan`` where the source itself cannot be reached."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many samples, the first in source order."""
