"""What a source is: a list of work items that can be read one by one, each yielding raw samples.

A reader is a class ``Reader(config: SourceConfig, folder: Path)`` with the three methods of :class:`Source`.
It must be cheap to make (no reading), and ``read`` must yield the same samples in the same order every time.
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from pydantic import ValidationError

from infra.config import Config
from infra.errors import SourceError
from tasks.sources.config import SourceConfig
from tasks.sources.root import Root

Options = TypeVar("Options", bound=Config)
Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A piece of a source that one worker reads alone. ``locator`` is JSON and says where it lies."""

    source: str
    index: int
    locator: dict[str, Any]
    retry: int = 0
    """0: the item as listed; k: its samples that the k-th ``calumma retry`` reads again, by ``locator["keys"]``."""

    @property
    def part(self) -> str:
        """The name of every part made from this item: ``emoji-000003``, of its first retry ``emoji-000003.r1``."""
        return f"{self.source}-{self.index:06d}" + (f".r{self.retry}" if self.retry else "")


@dataclass(frozen=True, slots=True)
class RawImage:
    """A picture as its file's bytes, not decoded. ``data`` is None where the source names one that is not there."""

    name: str
    data: bytes | None
    url: str = ""
    """Where it came from, if the source says so; a removal list may name it."""
    error: str = "missing-image"
    """Why ``data`` is None: a class of ``tasks/sources/faults.py``."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of an interleaved document or a turn's piece: a text, or the number of one of the sample's images."""

    text: str | None = None
    image: int | None = None
    role: str = ""
    """In conversations ``user`` or ``assistant``; else empty."""


@dataclass(frozen=True, slots=True)
class RawSample:
    """One pair, text, interleaved document or conversation, as read.

    Pairs have one image and ``captions``; what is tokenised already has ``tokens``; everything else has ``segments``
    (a text has one).
    """

    key: str
    """Unique and stable within the source: ``1f34e.png``, ``docs.jsonl@1024`` (a line, by the byte it begins at)."""
    file: str
    row: int
    captions: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    images: tuple[RawImage, ...] = ()
    licence: str = ""
    category: str = ""
    """For conversations: text, code, visual-chat, image-generation, interleaved-generation, safety."""
    tokens: bytes = b""
    """Of kind ``tokens``: vocabulary ids, uint16 little-endian, without ``<s>`` and ``</s>``."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be made a sample at all; it goes to quarantine."""

    file: str
    row: int
    error: str
    """A class of ``tasks/sources/faults.py``: ``bad-json``, ``missing-field``, ``damaged-file``."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class EndOfRange:
    """The last thing that a reader of a byte range yields: how many lines of the file the range covers.

    ``scan`` numbers the ranges of a file by it, since nobody counts lines before they are read.
    """

    lines: int


@runtime_checkable
class Source(Protocol):
    """A source of samples."""

    def digest(self) -> str:
        """Identity of the content, cheap: from names, sizes and times of files, or a package's version."""
        ...

    def work_items(self, target: int) -> Iterator[WorkItem]:
        """Work items of about ``target`` samples, in order, without reading the samples."""
        ...

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow | EndOfRange]:
        """The item's samples in order; never raises for one bad row."""
        ...


def sample_id(source: str, key: str) -> bytes:
    """blake2b-128 of the source's name and the sample's key."""
    return hashlib.blake2b(f"{source}\0{key}".encode(), digest_size=16).digest()


def digest_of(*facts: str) -> str:
    """blake2b-128 of some facts in order, as 32 hex digits: what readers make their identity of."""
    digest = hashlib.blake2b(digest_size=16)
    for fact in facts:
        digest.update(len(fact.encode("utf-8", "surrogatepass")).to_bytes(8, "little"))
        digest.update(fact.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@dataclass(frozen=True)
class BaseSource:
    """What readers share: their configuration, and where relative paths start."""

    config: SourceConfig
    folder: Path = field(default_factory=Path)

    def options(self, cls: type[Options]) -> Options:
        """The source's options, checked; SourceError names an unknown or wrong one and what is known."""
        try:
            return cls.model_validate(self.config.options)
        except ValidationError as e:
            lines = []
            for fault in e.errors():
                key = ".".join(str(p) for p in fault["loc"])
                if fault["type"] == "extra_forbidden":
                    near = difflib.get_close_matches(key, cls.model_fields, 1, 0.5)
                    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields) or 'none'}"
                    lines.append(f"unknown option {key!r}; {hint}")
                else:
                    lines.append(f"option {key or 'options'}: {fault['msg'].removeprefix('Value error, ')}")
            raise SourceError(f"source {self.config.name} ({self.config.type}): " + "; ".join(lines)) from e

    def root(self) -> Root:
        """The file or folder that ``path`` names; SourceError if there is nothing. Looked for once."""
        return self._root

    @cached_property
    def _root(self) -> Root:
        path = self.config.path
        if path is None:
            raise SourceError(f"source {self.config.name} ({self.config.type}): set `path` to its file or folder")
        url = path if "://" in path else str(self.folder / Path(path).expanduser())
        found = Root.of(url)
        if found is None:
            there = "relative paths start at the recipe's folder, " + str(self.folder.resolve())
            raise SourceError(
                f"source {self.config.name}: there is nothing at {url}. Correct `path`"
                + (f"; {there}." if "://" not in path else ": a file, or what the names of several begin with.")
            )
        return found


class EmbeddedSource(BaseSource, ABC, Generic[Entry]):
    """A source whose entries all fit in memory: its work items are plain ranges of them."""

    @abstractmethod
    def entries(self) -> Sequence[Entry]:
        """All entries, in order; cached by the implementation, since every work item asks for them."""

    @abstractmethod
    def sample(self, row: int, entry: Entry) -> RawSample | BadRow:
        """The sample that an entry stands for."""

    def work_items(self, target: int) -> Iterator[WorkItem]:
        count = len(self.entries())
        for index, start in enumerate(range(0, count, target)):
            yield WorkItem(self.config.name, index, {"start": start, "stop": min(start + target, count)})

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        entries = self.entries()
        for row in range(item.locator["start"], item.locator["stop"]):
            yield self.sample(row, entries[row])
