"""What a source is: a list of work items that can be read one by one, each yielding raw samples.

A reader is a class ``Reader(config: SourceConfig, folder: Path)`` with the three methods of :class:`Source`.
It must be cheap to make (no reading), and ``read`` must yield the same samples in the same order every time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tasks.sources.config import SourceConfig


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A piece of a source that one worker reads alone. ``locator`` is JSON and says where it lies."""

    source: str
    index: int
    locator: dict[str, Any]

    @property
    def part(self) -> str:
        """The name of every part made from this item: ``emoji-00003``."""
        return f"{self.source}-{self.index:05d}"


@dataclass(frozen=True, slots=True)
class RawImage:
    """A picture as its file's bytes, not decoded. ``data`` is None where the source names one that is missing."""

    name: str
    data: bytes | None


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

    Pairs have one image and ``captions``; everything else has ``segments`` (a text has one).
    """

    key: str
    """Unique and stable within the source: ``1f34e.png``, ``docs.jsonl#17``."""
    file: str
    row: int
    captions: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    images: tuple[RawImage, ...] = ()
    licence: str = ""
    category: str = ""
    """For conversations: text, code, visual-chat, image-generation, interleaved-generation, safety."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be made a sample at all; it goes to quarantine."""

    file: str
    row: int
    error: str
    """Class, in kebab-case: ``bad-json``, ``missing-field``, ``missing-image``."""
    message: str = ""


@runtime_checkable
class Source(Protocol):
    """A source of samples."""

    def digest(self) -> str:
        """Identity of the content, cheap: from names, sizes and times of files, or a package's version."""
        ...

    def work_items(self, target: int) -> Iterator[WorkItem]:
        """Work items of about ``target`` samples, in order, without reading the samples."""
        ...

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        """The item's samples in order; never raises for one bad row."""
        ...


def sample_id(source: str, key: str) -> bytes:
    """blake2b-128 of the source's name and the sample's key."""
    return hashlib.blake2b(f"{source}\0{key}".encode(), digest_size=16).digest()


@dataclass(frozen=True)
class BaseSource:
    """What readers share: their configuration, and where relative paths start."""

    config: SourceConfig
    folder: Path = field(default_factory=Path)
