"""What sources of many files share: those below ``path`` that end in certain ways, and Parquet among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from infra.errors import SourceError
from infra.storage import FileInfo, Storage
from tasks.sources import parquet
from tasks.sources.base import BadRow, BaseSource, RawImage, RawSample, WorkItem
from tasks.sources.files import UnusableRow, ahead, ends_in, listing_digest, load_image, without_file


class ListedSource(BaseSource, ABC):
    """The files that ``path`` names: one, or all below a folder."""

    format: ClassVar[str]
    """Name and version of how files are read; another version is another content."""
    suffixes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def locators(self, target: int) -> Iterator[dict[str, Any]]:
        """Where each work item lies, in order."""

    def digest(self) -> str:
        return listing_digest(self.format, self.files())

    def work_items(self, target: int) -> Iterator[WorkItem]:
        for index, locator in enumerate(self.locators(target)):
            yield WorkItem(self.config.name, index, locator)

    def files(self) -> Iterator[FileInfo]:
        """The files in order; SourceError where there are none."""
        found = self.root().files(ends_in(*self.suffixes))
        first = next(found, None)
        if first is None:
            raise SourceError(
                f"source {self.config.name}: no file of {self.root().url()} ends in {', '.join(self.suffixes)}; set "
                "`path` to such a file or to a folder of them"
            )
        yield first
        yield from found


class ParquetSource(ListedSource):
    """Parquet files of which each row is a sample."""

    suffixes = (parquet.SUFFIX,)

    @abstractmethod
    def columns(self) -> Sequence[str | None]:
        """The columns that are read, where a file has them."""

    @abstractmethod
    def sample(self, file: str, row: int, content: dict[str, Any]) -> RawSample | BadRow:
        """What becomes of a row; UnusableRow where it cannot be a sample."""

    def locators(self, target: int) -> Iterator[dict[str, Any]]:
        return parquet.slices(self.root().storage, self.files(), target)

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        storage, file = self.root().storage, item.locator["file"]

        def made(found: tuple[int, dict[str, Any]] | BadRow) -> RawSample | BadRow:
            if isinstance(found, BadRow):
                return found
            try:
                return self.sample(file, *found)
            except UnusableRow as e:
                return BadRow(file, found[0], e.error, e.message)

        columns = [c for c in self.columns() if c is not None]
        yield from ahead(storage, made, parquet.rows(storage, item.locator, columns))


def captions_of(content: dict[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """All captions of a row, each a text or a list of texts, equal ones once; UnusableRow where it has none."""
    found: list[str] = []
    there = [n for n in names if content.get(n) is not None]
    if not there:
        null = [n for n in names if n in content]
        why = f"null in {', '.join(null)}" if null else f"none of {', '.join(names)} is there"
        raise UnusableRow("missing-caption", why)
    for name in there:
        values = content[name] if isinstance(content[name], list) else [content[name]]
        if not all(isinstance(v, str) for v in values):
            raise UnusableRow("bad-field", f"field {name!r} holds something other than texts")
        found += values
    return tuple(dict.fromkeys(found))


def image_of(value: Any, images: Storage, name: str, url: str = "") -> RawImage:
    """The picture that a value stands for: bytes, a name in ``images``, or ``{bytes, path}``, of which bytes go first.

    ``name`` is what bytes without a path are called. UnusableRow where it is none of these.
    """
    if isinstance(value, dict):
        path, data = value.get("path"), value.get("bytes")
        value = path if data is None else data
        name = path if isinstance(path, str) and path else name
    if isinstance(value, bytes):
        return RawImage(name, value, url)  # no bytes at all are a file that is empty, as in a folder
    if isinstance(value, str) and value:
        return load_image(images, value, url)
    if value is None or value == "":
        return without_file(name, url)
    raise UnusableRow("bad-field", f"{name} is {type(value).__name__}; expected bytes, a name, or {{bytes, path}}")
