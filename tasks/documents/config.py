"""Configuration of the document store."""

from __future__ import annotations

from infra.config import Config


class RemovalConfig(Config):
    """Samples that must not be used, whatever was done with them before."""

    list: str | None = None
    """A text file, relative to the recipe's folder or on ``s3://``: a sample id, a picture file's sha256 or a URL
    a line. It counts when documents are made, so that a longer list never encodes a picture again."""
