"""Looks at one sample: is it whole, is every picture readable, does it pass the filters, is it held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tasks.encode.decode import ImageError, open_image
from tasks.scan.config import ScanConfig
from tasks.scan.tables import FILTERED, KEPT, QUARANTINED
from tasks.sources.base import RawSample
from tasks.sources.config import Kind


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of a picture before it is encoded."""

    sha256: bytes
    """Of the file's bytes."""
    phash: int
    """64-bit perceptual hash: DCT of the 32x32 grey picture, its low frequencies against their median."""
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a sample, and what was measured on the way."""

    state: str
    """kept, filtered or quarantined."""
    reason: str = ""
    """The filter's name or the error's class."""
    message: str = ""
    held_out: bool = False
    content: bytes = bytes(32)
    """blake2b-256: equal for equal samples. A pair is its picture, whatever its captions say."""
    text_bytes: int = 0
    images: tuple[ImageFacts, ...] = ()


class _Unusable(Exception):
    def __init__(self, error: str, message: str) -> None:
        super().__init__(error, message)
        self.error, self.message = error, message


def examine(sample: RawSample, kind: Kind, config: ScanConfig, seed: int = 0) -> Finding:
    """Checks, measures, filters and places one sample; never raises for what a sample can contain.

    Held out is decided by content: by the pictures' bytes where there are any (one held-out picture holds the whole
    sample out), else by the text. So a picture is on the same side wherever it occurs.
    """
    try:
        texts = _texts(sample)
        _check_structure(sample, kind)
        images = tuple(_image_facts(sample, i, config.max_pixels) for i in range(len(sample.images)))
    except _Unusable as e:
        return Finding(QUARANTINED, e.error, e.message)
    reason = _filter(sample, kind, config, images)
    return Finding(
        state=FILTERED if reason else KEPT,
        reason=reason,
        held_out=any(is_held_out(d, config.held_out, seed) for d in _split_digests(sample, texts, images)),
        content=content_hash(sample, kind, images),
        text_bytes=sum(map(len, texts)),
        images=images,
    )


def is_held_out(digest: bytes, share: float, seed: int = 0) -> bool:
    """True for about ``share`` of all digests, another choice with each seed."""
    place = hashlib.blake2b(digest, digest_size=8, key=b"held-out", salt=seed.to_bytes(16, "little", signed=True))
    return int.from_bytes(place.digest(), "little") < int(share * 2**64)


def content_hash(sample: RawSample, kind: Kind, images: tuple[ImageFacts, ...]) -> bytes:
    """blake2b-256 of what makes two samples equal: a pair's picture; else roles, texts and pictures in order."""
    if kind == "pairs":
        return hashlib.blake2b(b"picture" + images[0].sha256, digest_size=32).digest()
    digest = hashlib.blake2b(digest_size=32)
    for segment in sample.segments:
        for part in (
            segment.role.encode(),
            (segment.text or "").encode(),
            b"" if segment.image is None else images[segment.image].sha256,
        ):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def perceptual_hash(image: Image.Image) -> int:
    """imagehash's ``phash`` as an unsigned 64-bit number."""
    import imagehash  # here: it brings SciPy along

    bits = np.asarray(imagehash.phash(image).hash, dtype=np.uint8).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def storable(text: str) -> str:
    """The text with whatever UTF-8 cannot hold (a file name that is not UTF-8) written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _texts(sample: RawSample) -> list[bytes]:
    """All captions and segments as UTF-8, which cannot hold half a surrogate pair (JSON can)."""
    try:
        f"{sample.licence}{sample.category}".encode()
        return [t.encode() for t in (*sample.captions, *(s.text for s in sample.segments if s.text is not None))]
    except UnicodeEncodeError as e:
        raise _Unusable("bad-unicode", f"half a surrogate pair, U+{ord(e.object[e.start]):04X}, in its text") from e


def _check_structure(sample: RawSample, kind: Kind) -> None:
    """What a reader must have kept to; a plug-in's fault costs its samples, not the run."""
    if kind == "pairs":
        if len(sample.images) != 1 or sample.segments:
            raise _Unusable("bad-structure", f"a pair has one picture and captions; found {len(sample.images)}")
        return
    shown = [s.image for s in sample.segments if s.image is not None]
    if sample.captions or sorted(shown) != list(range(len(sample.images))):
        raise _Unusable(
            "bad-structure", f"segments show pictures {shown} of {len(sample.images)}; each must occur once"
        )
    roles = {s.role for s in sample.segments}
    if kind == "messages" and not roles <= {"user", "assistant"}:
        raise _Unusable("bad-structure", f"roles are {sorted(roles)}; expected user and assistant")
    if kind == "text" and sample.images:
        raise _Unusable("bad-structure", "a text source yielded a picture; its kind should be interleaved")


def _image_facts(sample: RawSample, number: int, max_pixels: int) -> ImageFacts:
    raw = sample.images[number]
    if raw.data is None:
        raise _Unusable("missing-image", f"{storable(raw.name)}: no such file")
    try:
        image = open_image(raw.data, max_pixels)
    except ImageError as e:
        raise _Unusable(e.error_class, f"{storable(raw.name)}: {e.message}") from e
    return ImageFacts(hashlib.sha256(raw.data).digest(), perceptual_hash(image), image.width, image.height)


def _filter(sample: RawSample, kind: Kind, config: ScanConfig, images: tuple[ImageFacts, ...]) -> str:
    """The name of the first filter that the sample does not pass; empty if it passes all."""
    if _is_empty(sample, kind):
        return "empty"
    for image in images:
        if config.min_side is not None and min(image.width, image.height) < config.min_side:
            return "min-side"
        if config.max_aspect is not None and max(image.width, image.height) > config.max_aspect * min(
            image.width, image.height
        ):
            return "max-aspect"
    if kind == "pairs" and config.min_caption_chars is not None:
        longest = max(len(c.strip()) for c in sample.captions)
        return "min-caption-chars" if longest < config.min_caption_chars else ""
    if kind in ("text", "interleaved") and config.min_text_chars is not None:
        length = sum(len(s.text.strip()) for s in sample.segments if s.text)
        return "min-text-chars" if length < config.min_text_chars else ""
    return ""


def _is_empty(sample: RawSample, kind: Kind) -> bool:
    """Nothing to learn: a pair without a caption, a document without content, a conversation without an answer."""
    if kind == "pairs":
        return not any(c.strip() for c in sample.captions)
    answers = (s for s in sample.segments if kind != "messages" or s.role == "assistant")
    return not any(s.image is not None or (s.text or "").strip() for s in answers)


def _split_digests(sample: RawSample, texts: list[bytes], images: tuple[ImageFacts, ...]) -> Iterator[bytes]:
    if images:
        yield from (i.sha256 for i in images)
    else:
        yield hashlib.blake2b(b"\0".join(texts), digest_size=32).digest()


def row_of(sample_id: bytes, key: str, file: str, row: int, finding: Finding) -> dict[str, Any]:
    """The finding as a row of the scan's table."""
    return {
        "sample_id": sample_id,
        "key": storable(key),
        "file": storable(file),
        "row": row,
        "state": finding.state,
        "reason": finding.reason,
        "held_out": finding.held_out,
        "content": finding.content,
        "text_bytes": finding.text_bytes,
        "images": [
            {"sha256": i.sha256, "phash": i.phash, "width": i.width, "height": i.height} for i in finding.images
        ],
    }
