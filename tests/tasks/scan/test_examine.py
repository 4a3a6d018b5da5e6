from __future__ import annotations

import hashlib
import io
from typing import Any

import imagehash
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.scan.config import ScanConfig
from tasks.scan.examine import examine, is_held_out, perceptual_hash
from tasks.scan.facts import Finding, storable, without_images
from tasks.scan.tools import Tools
from tasks.sources.base import RawImage, RawSample, Segment
from tasks.sources.config import Kind, SourceConfig


def png(width: int = 20, height: int = 20, colour: str = "red") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(sink, "PNG")
    return sink.getvalue()


def pair(*captions: str, data: bytes | None = None, name: str = "a.png", **facts: str) -> RawSample:
    images = (RawImage(name, png() if data is None else data),)
    return RawSample("k", "f", 1, captions=captions, images=images, **facts)  # type: ignore[arg-type]


def document(*segments: Segment, images: tuple[RawImage, ...] = ()) -> RawSample:
    return RawSample("k", "f", 1, segments=segments, images=images)


def look(sample: RawSample, kind: Kind, source: dict[str, object] | None = None, **config: Any) -> Finding:
    scan = ScanConfig.model_validate(config)
    described = SourceConfig.model_validate(
        {"name": "s", "type": "x", "kind": kind, "licence": "CC0", **(source or {})}
    )
    return examine(sample, described, scan, Tools.of(scan), seed=0)


def test_a_whole_pair_is_measured() -> None:
    data = png(30, 20)
    found = look(pair("an apple", "une pomme", data=data), "pairs")
    assert (found.state, found.reason, found.text_bytes) == ("kept", "", 17)
    (image,) = found.images
    assert (image.width, image.height) == (30, 20)
    assert image.sha256 == hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    ("sample", "kind", "error"),
    [
        (RawSample("k", "f", 1, captions=("x",), images=(RawImage("a", None),)), "pairs", "missing-image"),
        (pair("x", data=b""), "pairs", "empty"),
        (pair("x", data=b"GIF89a"), "pairs", "corrupt"),
        (pair("x", data=b"hello"), "pairs", "not-an-image"),
        (pair("x", data=png(40, 40)[:60]), "pairs", "truncated"),
        (pair("half \ud83c a pair"), "pairs", "bad-unicode"),
        (pair("fine", licence="\udc80"), "pairs", "bad-unicode"),
        (RawSample("k", "f", 1, captions=("x",)), "pairs", "bad-structure"),
        (document(Segment("x"), Segment(image=0)), "interleaved", "bad-structure"),
        (document(Segment(image=0), images=(RawImage("a", png()),)), "text", "bad-structure"),
        (document(Segment("x")), "messages", "bad-structure"),
        (document(Segment("x", role="system")), "messages", "bad-structure"),
    ],
)
def test_what_cannot_be_used_is_quarantined_by_class(sample: RawSample, kind: Kind, error: str) -> None:
    found = look(sample, kind)
    assert (found.state, found.reason) == ("quarantined", error)
    assert found.message


def test_a_bomb_is_found_before_it_is_decoded() -> None:
    found = look(pair("x", data=png(100, 100)), "pairs", max_pixels=9_999)
    assert (found.state, found.reason) == ("quarantined", "bomb")
    assert look(pair("x", data=png(100, 100)), "pairs", max_pixels=10_000).state == "kept"


@pytest.mark.parametrize(
    ("sample", "kind", "config", "reason"),
    [
        (pair(" ", ""), "pairs", {}, "empty"),
        (pair(), "pairs", {}, "empty"),
        (document(Segment("  \n")), "text", {}, "empty"),
        (document(Segment("q", role="user"), Segment(" ", role="assistant")), "messages", {}, "empty"),
        (pair("x", data=png(20, 40)), "pairs", {"min_side": 21}, "min-side"),
        (pair("x", data=png(20, 41)), "pairs", {"max_aspect": 2}, "max-aspect"),
        (pair("ab", " cd "), "pairs", {"min_caption_chars": 3}, "min-caption-chars"),
        (document(Segment("four")), "text", {"min_text_chars": 5}, "min-text-chars"),
    ],
)
def test_filters_count_by_name(sample: RawSample, kind: Kind, config: dict[str, Any], reason: str) -> None:
    found = look(sample, kind, **config)
    assert (found.state, found.reason) == ("filtered", reason)


@pytest.mark.parametrize(
    ("sample", "kind", "config"),
    [
        (pair("x", data=png(20, 40)), "pairs", {"min_side": 20, "max_aspect": 2}),
        (pair("ab", "cde"), "pairs", {"min_caption_chars": 3, "min_text_chars": 100}),
        (document(Segment("four")), "text", {"min_text_chars": 4, "min_caption_chars": 100}),
        (document(Segment("q", role="user"), Segment("a", role="assistant")), "messages", {"min_text_chars": 9}),
    ],
)
def test_what_passes_is_kept(sample: RawSample, kind: Kind, config: dict[str, Any]) -> None:
    assert look(sample, kind, **config).state == "kept"


def test_a_pair_is_its_picture_and_anything_else_is_all_of_it() -> None:
    assert look(pair("a"), "pairs").content == look(pair("b", name="other.png"), "pairs").content
    assert look(pair("a"), "pairs").content != look(pair("a", data=png(colour="blue")), "pairs").content
    one = document(Segment("ab"), Segment("c"))
    assert look(one, "interleaved").content != look(document(Segment("a"), Segment("bc")), "interleaved").content
    said = document(Segment("x", role="user"), Segment("y", role="assistant"))
    turned = document(Segment("x", role="assistant"), Segment("y", role="user"))
    assert look(said, "messages").content != look(turned, "messages").content


@given(st.binary(min_size=1, max_size=40), st.integers(-(2**60), 2**60))
def test_the_split_is_a_function_of_content_and_seed(digest: bytes, seed: int) -> None:
    assert is_held_out(digest, 0.5, seed) == is_held_out(digest, 0.5, seed)
    assert not is_held_out(digest, 0.0, seed)
    assert is_held_out(digest, 0.2, seed) <= is_held_out(digest, 0.6, seed), (
        "a larger share holds out the same and more"
    )


def test_the_split_has_its_share_and_another_one_with_another_seed() -> None:
    digests = [hashlib.sha256(str(n).encode()).digest() for n in range(20_000)]
    first = [is_held_out(d, 0.05, 0) for d in digests]
    second = [is_held_out(d, 0.05, 1) for d in digests]
    assert 850 < sum(first) < 1150
    assert sum(a and b for a, b in zip(first, second, strict=True)) < 100


def test_one_held_out_picture_holds_out_every_sample_that_shows_it() -> None:
    """The same picture in a pair, in a document beside another, and in an answer: always on the same side."""
    pictures = [png(20, 20, f"#{n:02x}40{n:02x}") for n in range(60)]
    sides = set()
    for n, data in enumerate(pictures):
        alone = look(pair("x", data=data), "pairs", held_out=0.3).held_out
        other = pictures[(n + 1) % len(pictures)]
        other_alone = look(pair("y", data=other), "pairs", held_out=0.3).held_out
        images = (RawImage("a", data), RawImage("b", other))
        both = document(Segment(image=0), Segment("text"), Segment(image=1), images=images)
        assert look(both, "interleaved", held_out=0.3).held_out == (alone or other_alone)
        answer = document(Segment("Draw: x", role="user"), Segment(image=0, role="assistant"), images=images[:1])
        assert look(answer, "messages", held_out=0.3).held_out == alone
        sides.add(alone)
    assert sides == {True, False}


def test_perceptual_hash_is_imagehash_as_one_number() -> None:
    image = Image.radial_gradient("L").convert("RGB")
    assert f"{perceptual_hash(image):016x}" == str(imagehash.phash(image))
    assert perceptual_hash(image) < 2**64


def test_names_that_are_no_utf_8_become_storable() -> None:
    assert storable("a\udc80b") == "a\\udc80b"
    assert storable("é") == "é"


def test_tokens_are_their_ids() -> None:
    def sample(tokens: bytes, **rest: object) -> RawSample:
        return RawSample("k", "f", 1, tokens=tokens, **rest)  # type: ignore[arg-type]

    found = look(sample(b"\1\2"), "tokens", near_duplicates=True, language=True, languages=("en",))
    assert (found.state, found.text_bytes, found.images, found.near, found.language) == ("kept", 0, (), (), "")
    assert found.content != look(sample(b"\1\3"), "tokens").content == look(sample(b"\1\3"), "tokens").content
    assert look(sample(b""), "tokens").reason == "empty"
    assert look(sample(b"\1\2", captions=("x",)), "tokens").reason == "bad-structure"
    assert look(sample(b"\1\2", segments=(Segment("x"),)), "text").reason == "bad-structure"
    sides = {look(sample(bytes([n, 0])), "tokens", held_out=0.5).held_out for n in range(30)}
    assert sides == {True, False}


def test_a_document_may_stay_without_pictures_that_are_missing_or_unreadable() -> None:
    images = (RawImage("a", None), RawImage("b", png(), "http://b"), RawImage("c", b"no picture"))
    whole = document(*(Segment(image=n) for n in (2, 1, 0)), Segment("text"), images=images)
    assert look(whole, "interleaved").reason == "missing-image"
    found = look(whole, "interleaved", {"missing_images": "drop"})
    assert (found.state, found.dropped, [i.url for i in found.images]) == ("kept", (0, 2), ["http://b"])
    rest = document(Segment(image=0), Segment("text"), images=images[1:2])
    assert without_images(whole, found.dropped) == rest
    assert found.content == look(rest, "interleaved").content
    passing = document(Segment(image=0), Segment("text"), images=(RawImage("a", None, error="read-error"),))
    lost = look(passing, "interleaved", {"missing_images": "drop"})
    assert (lost.state, lost.reason) == ("quarantined", "read-error"), "tomorrow it would be another document"
    empty = document(Segment(image=0), images=images[:1])
    assert look(empty, "interleaved", {"missing_images": "drop"}).reason == "empty"
    answer = document(Segment("q", role="user"), Segment(image=0, role="assistant"), images=images[:1])
    assert look(answer, "messages", {"missing_images": "drop"}).reason == "missing-image"
    alone = RawSample("k", "f", 1, captions=("x",), images=images[:1])
    assert look(alone, "pairs", {"missing_images": "drop"}).reason == "missing-image"


@given(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=8), st.sets(st.integers(0, 5)))
def test_taking_pictures_out_keeps_all_else_in_order(shape: list[int | None], gone: set[int]) -> None:
    pictures = sorted({n for n in shape if n is not None})
    images = tuple(RawImage(f"{n}", b"x") for n in pictures)
    segments = [
        Segment(f"t{place}") if n is None else Segment(image=pictures.index(n))
        for place, n in enumerate(shape)
        if n is None or n not in shape[:place]
    ]
    sample = document(*segments, images=images)
    numbers = tuple(sorted(n for n in gone if n < len(images)))
    left = without_images(sample, numbers)
    assert [i.name for i in left.images] == [i.name for n, i in enumerate(images) if n not in numbers]
    shown = [left.images[s.image].name for s in left.segments if s.image is not None]
    assert shown == [images[s.image].name for s in segments if s.image is not None and s.image not in numbers]
    assert [s.text for s in left.segments if s.text] == [s.text for s in segments if s.text]
