"""The removal list: samples that must not be used, honoured when documents are made.

A text file of one entry a line: a sample id (32 hex digits), the sha256 of a picture's file (64 hex digits), or a URL
as the source names it (``http://`` or ``https://``). ``#`` starts a comment, in a URL's line only after white space. In
memory an id or a URL takes 16 bytes and a sha256 32 bytes, sorted; nothing else is kept of the list.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import CalummaError, SourceError
from tasks.documents.config import RemovalConfig
from tasks.scan.inputs import located

Digests = npt.NDArray[np.bytes_]
_COMMENT = re.compile(rb"\s#")
# A space may be in an address as a source has it; a tab or a carriage return says that a line is another's, too.
_SPACE = re.compile(rb"[\t\r\v\f]")
_BLOCK = 1 << 22
"""Bytes whose lines are turned into digests at once."""


def _no_digests(width: int) -> Digests:
    return np.array([], dtype=f"S{width}")


@dataclass(frozen=True)
class Removal:
    """A removal list in memory."""

    digest: str = ""
    """sha256 of the list's bytes, 64 hex digits; empty where there is no list."""
    ids: Digests = field(default_factory=lambda: _no_digests(16))
    """(n,) of 16 bytes, sorted."""
    pictures: Digests = field(default_factory=lambda: _no_digests(32))
    """(n,) sha256 of picture files, sorted."""
    urls: Digests = field(default_factory=lambda: _no_digests(16))
    """(n,) blake2b-128 of URLs, sorted."""

    @classmethod
    def load(cls, config: RemovalConfig, folder: str = ".") -> Removal:
        """The list that a recipe names, or an empty one; ``folder`` is where a relative path starts.

        Raises:
            SourceError: The file is not there, or a line is neither id, sha256 nor URL; file and line are named.
        """
        if config.list is None:
            return cls()
        storage, name = located(config.list, folder)
        digest, found = hashlib.sha256(), _Found()
        try:
            with storage.open(name) as f:
                number = 1
                while block := f.readlines(_BLOCK):
                    digest.update(b"".join(block))
                    found.take(block, number, storage.url(name))
                    number += len(block)
        except (OSError, CalummaError) as e:
            if isinstance(e, SourceError):
                raise
            raise SourceError(f"{storage.url(name)}: the removal list cannot be read ({e}); set removal.list") from e
        return cls(digest.hexdigest(), _sorted(found.ids, 16), _sorted(found.pictures, 32), _sorted(found.urls, 16))

    def __len__(self) -> int:
        return len(self.ids) + len(self.pictures) + len(self.urls)

    def covers(self, sample_id: bytes, images: Sequence[tuple[bytes, str]] = ()) -> bool:
        """Whether the list names the sample's id, or one of its pictures by the file's sha256 or by its URL."""
        if _holds(self.ids, sample_id):
            return True
        return any(
            _holds(self.pictures, sha256) or (bool(url) and _holds(self.urls, _url_digest(url.encode())))
            for sha256, url in images
        )


class Reach:
    """What a list covers among all samples that were scanned, also those that select dropped as duplicates.

    Somebody's picture may be in the stores under the id and the URL of its twin. So what counts is the content:
    whatever is equal to a sample that the list names goes with it.
    """

    def __init__(self, removal: Removal) -> None:
        self._removal = removal
        self._matched = [np.zeros(len(d), np.bool_) for d in (removal.ids, removal.pictures, removal.urls)]
        self.contents: set[bytes] = set()
        """Content hashes, 32 bytes each, of the samples that the list names."""

    def add(self, table: pa.Table) -> None:
        """A part of scan's tables, with ``sample_id``, ``content`` and ``images``."""
        images = table["images"].combine_chunks()
        rows = pc.list_parent_indices(images).to_numpy()
        flat = pc.list_flatten(images)
        hit = self._find(0, self._removal.ids, table["sample_id"].to_pylist())
        shown = self._find(1, self._removal.pictures, pc.struct_field(flat, "sha256").to_pylist())
        if len(self._removal.urls):
            urls = [_url_digest(url.encode()) if url else b"" for url in pc.struct_field(flat, "url").to_pylist()]
            shown |= self._find(2, self._removal.urls, urls)
        hit[rows[shown]] = True
        found = table["content"].to_pylist()
        self.contents |= {found[row] for row in np.flatnonzero(hit) if any(found[row])}

    @property
    def unmatched(self) -> int:
        """How many entries of the list name nothing that was scanned."""
        return sum(int((~matched).sum()) for matched in self._matched)

    def _find(self, kind: int, digests: Digests, wanted: Sequence[bytes]) -> npt.NDArray[np.bool_]:
        if not len(digests) or not len(wanted):
            return np.zeros(len(wanted), np.bool_)
        values = np.array(wanted, dtype=digests.dtype)
        places = np.minimum(np.searchsorted(digests, values), len(digests) - 1)
        hit: npt.NDArray[np.bool_] = digests[places] == values
        self._matched[kind][places[hit]] = True
        return hit


class _Found:
    """Digests as they are read, block by block; joined and sorted at the end."""

    def __init__(self) -> None:
        self.ids, self.pictures, self.urls = bytearray(), bytearray(), bytearray()

    def take(self, lines: Sequence[bytes], first: int, where: str) -> None:
        """Some lines, the first of which has this number in its file."""
        if self._take_uniform(lines):
            return
        entries = [_entry(line) for line in lines]
        for length, target in ((32, self.ids), (64, self.pictures)):
            try:
                target += bytes.fromhex(b"".join(e for e in entries if len(e) == length and not _is_url(e)).decode())
            except ValueError:
                _name_bad_line(entries, first, where)
        for entry in entries:
            if _is_url(entry):
                self.urls += _url_digest(entry)
            elif len(entry) not in (0, 32, 64):
                _name_bad_line(entries, first, where)

    def _take_uniform(self, lines: Sequence[bytes]) -> bool:
        """Takes lines that are all ids, or all sha256, and nothing else, which most of a long list are: fast."""
        widths = set(map(len, lines))
        if widths not in ({33}, {65}):
            return False
        try:
            digests = bytes.fromhex(b"".join(lines).decode())
        except ValueError:
            return False
        width = widths.pop() // 2
        if len(digests) != width * len(lines):  # white space that fromhex passed over
            return False
        (self.ids if width == 16 else self.pictures).extend(digests)
        return True


def _entry(line: bytes) -> bytes:
    """What a line says, without comment and white space around it; white space within stays, and is a fault."""
    text = line.strip()
    if b"#" in text:
        # In a URL it may begin a fragment: there a comment stands after white space.
        text = _COMMENT.split(text, maxsplit=1)[0] if text.startswith(b"http") else text.partition(b"#")[0]
        text = text.rstrip()
    # fromhex would pass over a space within digits
    return text if _is_url(text) else text.replace(b" ", b"?")


def _is_url(entry: bytes) -> bool:
    return entry.startswith((b"http://", b"https://")) and not _SPACE.search(entry)


def _name_bad_line(entries: Sequence[bytes], first: int, where: str) -> None:
    for number, entry in enumerate(entries, first):
        is_hex = len(entry) in (32, 64) and all(c in b"0123456789abcdefABCDEF" for c in entry)
        if entry and not is_hex and not _is_url(entry):
            raise SourceError(
                f"{where}:{number}: {entry[:80].decode('utf-8', 'replace')!r} is no entry of a removal list; expected "
                "a sample id (32 hex digits), the sha256 of a picture's file (64 hex digits) or a URL. "
                "Correct or remove the line."
            )


def _url_digest(url: bytes) -> bytes:
    return hashlib.blake2b(url, digest_size=16).digest()


def _sorted(data: bytearray, width: int) -> Digests:
    found = np.frombuffer(data, dtype=f"S{width}")
    found.sort()  # in place: the bytearray is this array's memory
    return found


def _holds(digests: Digests, digest: bytes) -> bool:
    place = int(np.searchsorted(digests, np.bytes_(digest)))
    # numpy's fixed-width bytes drop trailing zeros on the way out, so both sides are compared as the array holds them
    return place < len(digests) and bool(digests[place] == np.bytes_(digest).rstrip(b"\0"))
