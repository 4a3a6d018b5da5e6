"""Pairs from Parquet: the picture's bytes or name in one column, its captions in others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from infra.config import Config
from infra.storage import Storage
from tasks.sources.base import RawSample
from tasks.sources.files import UnusableRow, images_storage, optional_text
from tasks.sources.listed import ParquetSource, captions_of, image_of


class PairsParquetOptions(Config):
    """Options of type ``pairs-parquet``."""

    image: str = "image"
    """Column with the picture: its bytes, its name, or the ``datasets`` library's ``{bytes, path}``."""
    images: str | None = None
    """Folder that names start from, relative to the folder of ``path``, or an address; None: that folder."""
    captions: tuple[str, ...] = ("captions", "caption", "text")
    """Columns with captions, each a text or a list of texts; those that a row has are used, in this order."""
    licence: str | None = "licence"
    """Column with the pair's licence, where there is one."""
    url: str | None = "url"
    """Column with the picture's address, where there is one."""


class PairsParquet(ParquetSource):
    """Pairs of the Parquet files below ``path``; rows count from 1 in their file.

    The digest covers the Parquet files, not pictures beside them.
    """

    format = "pairs-parquet 1"

    def columns(self) -> Sequence[str | None]:
        options = self._options
        return options.image, *options.captions, options.licence, options.url

    def sample(self, file: str, row: int, content: dict[str, Any]) -> RawSample:
        options, key = self._options, f"{file}#{row}"
        if options.image not in content:
            raise UnusableRow(
                "missing-field", f"no column {options.image!r}; of those looked for there are {[*content]}"
            )
        image = image_of(content[options.image], self._images, key, optional_text(content, options.url))
        captions = captions_of(content, options.captions)
        licence = optional_text(content, options.licence)
        return RawSample(key, file, row, captions=captions, images=(image,), licence=licence)

    @cached_property
    def _options(self) -> PairsParquetOptions:
        return self.options(PairsParquetOptions)

    @cached_property
    def _images(self) -> Storage:
        return images_storage(self.config.name, self.root().storage, self._options.images)
