"""Configuration of a source: what it is, where it lies, what licence it carries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from infra.config import Config

Kind = Literal["pairs", "text", "interleaved", "messages"]


class SourceConfig(Config):
    """One source. ``type`` names a reader in ``tasks/sources`` or is an import path ``package.module:Class``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    type: str
    kind: Kind
    """pairs: a picture and captions; text; interleaved: texts and pictures in order; messages: prompts and answers."""
    path: str | None = None
    """Folder or file the reader starts from; relative paths are relative to the recipe's folder."""
    options: dict[str, Any] = {}
    """The reader's own options."""
    licence: str = "unknown"
    """Used where a sample names none."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many samples, the first in source order."""
