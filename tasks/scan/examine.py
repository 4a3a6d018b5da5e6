"""Looks at one sample: is it whole, is every picture readable, does it pass the filters, is it held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tasks.encode.decode import ImageError
from tasks.scan.config import ScanConfig
from tasks.scan.facts import Finding, ImageFacts, storable, without_images
from tasks.scan.filters import Facts, filtered
from tasks.scan.overlap import quoted
from tasks.scan.tables import FILTERED, KEPT, QUARANTINED
from tasks.scan.tools import Tools
from tasks.sources.base import RawSample
from tasks.sources.config import Kind, SourceConfig

PASSING = ("read-error", "memory")
"""Faults of a moment: a document that lost a picture to one is not the document that it will be tomorrow."""


class _Unusable(Exception):
    def __init__(self, error: str, message: str) -> None:
        super().__init__(error, message)
        self.error, self.message = error, message


def examine(sample: RawSample, source: SourceConfig, config: ScanConfig, tools: Tools, seed: int = 0) -> Finding:
    """Checks, measures, filters and places one sample; never raises for what a sample can contain.

    Held out is decided by content: by the pictures' bytes where there are any (one held-out picture holds the whole
    sample out), else by the text. So a picture is on the same side wherever it occurs. Languages, benchmarks and
    plug-ins see what the plain filters let through.
    """
    kind = source.kind
    try:
        encoded = _texts(sample)
        _check_structure(sample, kind)
        images, dropped = _images(sample, source, tools)
        sample = without_images(sample, dropped)
        texts = _strings(sample)
        facts = Facts(kind, source.name, sample.licence or source.licence, images, language="")
        reason = filtered(sample, facts, config)
        if not reason and tools.languages is not None and kind != "tokens":
            facts = Facts(kind, facts.source, facts.licence, images, tools.languages.of(texts))
            if config.languages is not None and facts.language not in config.languages:
                reason = "language"
        if not reason and tools.benchmarks and (name := quoted(tools.benchmarks, texts)):
            reason = f"benchmark-{name}"
        if not reason:
            reason = _plugged_in(sample, facts, tools)
    except _Unusable as e:
        return Finding(QUARANTINED, e.error, e.message)
    near = tools.near is not None and not reason and kind in ("text", "interleaved")
    return Finding(
        state=FILTERED if reason else KEPT,
        reason=reason,
        held_out=any(is_held_out(d, config.held_out, seed) for d in _split_digests(sample, encoded, images)),
        content=content_hash(sample, kind, images),
        text_bytes=sum(map(len, encoded)),
        images=images,
        dropped=dropped,
        language=facts.language,
        near=tools.near.bands(texts) if near and tools.near is not None else (),
    )


def is_held_out(digest: bytes, share: float, seed: int = 0) -> bool:
    """True for about ``share`` of all digests, another choice with each seed."""
    place = hashlib.blake2b(digest, digest_size=8, key=b"held-out", salt=seed.to_bytes(16, "little", signed=True))
    return int.from_bytes(place.digest(), "little") < int(share * 2**64)


def content_hash(sample: RawSample, kind: Kind, images: tuple[ImageFacts, ...]) -> bytes:
    """blake2b-256 of what makes two samples equal: a pair's picture, tokens, or roles, texts and pictures in order."""
    if kind == "pairs":
        return hashlib.blake2b(b"picture" + images[0].sha256, digest_size=32).digest()
    if kind == "tokens":
        return hashlib.blake2b(b"tokens" + sample.tokens, digest_size=32).digest()
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


def _strings(sample: RawSample) -> list[str]:
    return [*sample.captions, *(s.text for s in sample.segments if s.text is not None)]


def _texts(sample: RawSample) -> list[bytes]:
    """All captions and segments as UTF-8, which cannot hold half a surrogate pair (JSON can)."""
    try:
        f"{sample.licence}{sample.category}".encode()
        return [t.encode() for t in _strings(sample)]
    except UnicodeEncodeError as e:
        raise _Unusable("bad-unicode", f"half a surrogate pair, U+{ord(e.object[e.start]):04X}, in its text") from e


def _check_structure(sample: RawSample, kind: Kind) -> None:
    """What a reader must have kept to; a plug-in's fault costs its samples, not the run."""
    if kind == "tokens":
        if sample.images or sample.segments or sample.captions:
            raise _Unusable("bad-structure", "a sample of kind tokens has tokens and neither pictures nor texts")
        return
    if sample.tokens:
        raise _Unusable("bad-structure", f"a {kind} source yielded tokens; its kind should be tokens")
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


def _images(sample: RawSample, source: SourceConfig, tools: Tools) -> tuple[tuple[ImageFacts, ...], tuple[int, ...]]:
    """Facts of the pictures that can be used, and the numbers of those that the document goes without."""
    may_drop = source.kind == "interleaved" and source.missing_images == "drop"
    found: list[ImageFacts] = []
    dropped: list[int] = []
    for number in range(len(sample.images)):
        try:
            found.append(_image_facts(sample, number, tools))
        except _Unusable as e:
            if not may_drop or e.error in PASSING:
                raise
            dropped.append(number)
    return tuple(found), tuple(dropped)


def _image_facts(sample: RawSample, number: int, tools: Tools) -> ImageFacts:
    raw = sample.images[number]
    if raw.data is None:
        about = "no such file" if raw.error == "missing-image" else raw.error
        raise _Unusable(raw.error, f"{storable(raw.name)}: {about}")
    try:
        image = tools.pictures.open(raw)
    except ImageError as e:
        raise _Unusable(e.error_class, f"{storable(raw.name)}: {e.message}") from e
    return ImageFacts(
        sha256=hashlib.sha256(raw.data).digest(),
        phash=perceptual_hash(image),
        width=image.width,
        height=image.height,
        url=storable(raw.url),
        faces=() if tools.faces is None else tools.faces.find(image),
    )


def _plugged_in(sample: RawSample, facts: Facts, tools: Tools) -> str:
    for plug_in in tools.filters:
        try:
            reason = plug_in.reason(sample, facts)
        except Exception as e:  # a plug-in may raise anything; it costs the sample and is told in the quarantine
            raise _Unusable("plugin-error", f"{type(plug_in).__qualname__}: {type(e).__name__}: {e}") from e
        if reason:
            return str(reason)
    return ""


def _split_digests(sample: RawSample, texts: list[bytes], images: tuple[ImageFacts, ...]) -> Iterator[bytes]:
    if images:
        yield from (i.sha256 for i in images)
    else:
        yield hashlib.blake2b(b"\0".join([*texts, sample.tokens] if sample.tokens else texts), digest_size=32).digest()
