"""Pairs as img2dataset leaves them: tars, folders of files, or Parquet with the pictures in it.

Beside every tar and folder lies a Parquet file of its name with a row for each address, also those that could not be
fetched: these are bad rows here, so that the ledger covers all that img2dataset was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

from infra.config import Config
from infra.errors import SourceError
from infra.storage import FileInfo, Storage
from tasks.sources import parquet
from tasks.sources.base import BadRow, RawSample, WorkItem
from tasks.sources.files import (
    UnusableRow,
    ahead,
    ends_in,
    folder_slices,
    load_image,
    optional_text,
    slice_files,
)
from tasks.sources.listed import ListedSource, captions_of, image_of
from tasks.sources.packed import opened
from tasks.sources.webdataset import Group, WebdatasetOptions, read_tar, sample_of

ENCODED = ("jpg", "png", "webp")
"""The formats that img2dataset writes: extensions of files, and names of Parquet columns."""
_PICTURES = ends_in(*(f".{e}" for e in ENCODED))
_STATUS = ("key", "status", "error_message", "url")
_SUCCESS = "success"


class Img2datasetOptions(Config):
    """Options of type ``img2dataset``."""

    format: Literal["webdataset", "files", "parquet"] | None = None
    """The ``output_format`` that it was called with; None: seen by the names of the first files."""
    captions: tuple[str, ...] = ("caption", "txt")
    """Columns with captions; of a tar or folder the fields of the ``.json``, and ``txt`` for the ``.txt``."""
    licence: str | None = "licence"
    """Column with the pair's licence, where ``save_additional_columns`` kept one."""


class Img2dataset(ListedSource):
    """Pairs of the folder that img2dataset wrote, of one shard's file, or of a folder of several such folders.

    A shard is one work item where it is a tar; else it is cut into slices.
    """

    format = "img2dataset 1"
    suffixes = (".tar", parquet.SUFFIX, *(f".{e}" for e in ENCODED), ".txt", ".json", ".tfrecord")

    def locators(self, target: int) -> Iterator[dict[str, Any]]:
        storage = self.root().storage
        if self._format == "webdataset":
            shards = (f.name for f in self.files() if ends_in(".tar", parquet.SUFFIX)(f.name))
            for shard, _ in groupby(shards, _stem):
                yield {"shard": shard}
            return
        listed = [f for f in self.files() if f.name.endswith(parquet.SUFFIX)]
        yield from parquet.slices(storage, listed, target)
        if self._format == "files":
            known = {_stem(f.name) for f in listed}
            yield from folder_slices(self._pictures(known), target)

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        storage, locator = self.root().storage, item.locator
        if "shard" in locator:
            yield from self._read_tar(storage, locator["shard"])
        elif "folder" in locator:
            names = enumerate(slice_files(storage, locator, _PICTURES), locator["row"])
            yield from ahead(storage, lambda place: self._beside(storage, *place), names)
        else:
            columns = [*_STATUS, *self._options.captions, *filter(None, [self._options.licence])]
            columns += ENCODED if self._format == "parquet" else ()
            rows = parquet.rows(storage, locator, columns)
            yield from ahead(storage, lambda found: self._from_row(storage, locator["file"], found), rows)

    @cached_property
    def _options(self) -> Img2datasetOptions:
        return self.options(Img2datasetOptions)

    @cached_property
    def _format(self) -> str:
        if self._options.format is not None:
            return self._options.format
        storage = self.root().storage
        for file in self.files():
            stem, _, suffix = file.name.rpartition(".")
            if suffix == "tfrecord" or storage.info(f"{stem}.tfrecord") is not None:
                break
            if suffix == "tar" or storage.info(f"{stem}.tar") is not None:
                return "webdataset"
            if suffix == "parquet":
                return "files" if storage.list(stem) else "parquet"
            if suffix in ENCODED:
                return "files"
        raise SourceError(
            f"source {self.config.name}: {self.root().url()} does not look like what img2dataset writes with "
            "output_format webdataset, files or parquet; set option `format` if it is one of these."
        )

    def _pictures(self, known: set[str]) -> Iterator[FileInfo]:
        """Pictures in folders without a list beside them: of a shard that was not finished."""
        return (f for f in self.files() if _PICTURES(f.name) and f.name.rpartition("/")[0] not in known)

    def _read_tar(self, storage: Storage, shard: str) -> Iterator[RawSample | BadRow]:
        seen: set[str] = set()
        if storage.info(f"{shard}.tar") is not None:
            with opened(storage, f"{shard}.tar") as stream:
                for key, sample in read_tar(stream, f"{shard}.tar", self._in_tar):
                    seen.add(key.rpartition("/")[2])
                    yield sample
        file = f"{shard}{parquet.SUFFIX}"
        if storage.info(file) is None:
            return
        for found in parquet.rows(storage, {"file": file, "slice": 0, "of": 1}, _STATUS):
            if isinstance(found, BadRow):
                yield found
            elif found[1].get("status") != _SUCCESS:
                yield _failed(file, *found)
            elif found[1].get("key") not in seen:
                yield BadRow(file, found[0], "no-picture", f"{found[1].get('key')} is not in {shard}.tar")

    @cached_property
    def _in_tar(self) -> WebdatasetOptions:
        places = tuple("txt" if c == "txt" else f"json.{c}" for c in self._options.captions)
        return WebdatasetOptions(images=ENCODED, captions=places, licence=self._options.licence)

    def _beside(self, storage: Storage, row: int, name: str) -> RawSample | BadRow:
        """The pair of a picture and the files beside it; those may be absent, but not unreadable."""
        stem, _, extension = name.rpartition(".")
        group = Group(stem)
        try:
            for suffix in (extension, "txt", "json"):
                found = load_image(storage, f"{stem}.{suffix}")
                if found.data is not None:
                    group.files[suffix] = found.data
                elif found.error != "missing-image" or suffix == extension:
                    raise UnusableRow(found.error, f"{found.name} could not be read")
        except UnusableRow as e:
            group.fault = e
        return sample_of(group, name, row, self._in_tar, name)

    def _from_row(self, storage: Storage, file: str, found: tuple[int, dict[str, Any]] | BadRow) -> RawSample | BadRow:
        if isinstance(found, BadRow):
            return found
        row, content = found
        if content.get("status") != _SUCCESS:
            return _failed(file, row, content)
        url, sample_key = optional_text(content, "url"), f"{file}#{row}"
        try:
            captions = captions_of(content, self._options.captions)
            if self._format == "parquet":
                value = next((content[e] for e in ENCODED if content.get(e) is not None), None)
                image = image_of(value, storage, sample_key, url)
            else:
                stem = f"{_stem(file)}/{optional_text(content, 'key')}"
                tried = (load_image(storage, f"{stem}.{e}", url) for e in ENCODED)
                images = [i for i in tried if i.data is not None or i.error != "missing-image"]
                image = images[0] if images else load_image(storage, f"{stem}.{ENCODED[0]}", url)
        except UnusableRow as e:
            return BadRow(file, row, e.error, e.message)
        licence = optional_text(content, self._options.licence)
        return RawSample(sample_key, file, row, captions=captions, images=(image,), licence=licence)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _failed(file: str, row: int, content: dict[str, Any]) -> BadRow:
    said = " ".join(str(content.get(name) or "") for name in ("status", "error_message", "url")).strip()
    return BadRow(file, row, "not-downloaded", f"img2dataset says: {said or 'no status'}")
