"""Reading and decoding ahead: bounded, in order, and the same whatever the threads."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import SourceError
from tasks.encode.pictures import Preparer, read_ahead
from tasks.encode.transforms import transform
from tasks.scan.facts import ImageFacts
from tasks.scan.selected import SelectedRow
from tasks.sheets import png
from tasks.sources.base import RawImage, RawSample, Segment

REFERENCE = transform("reference-1")
Selected = tuple[RawSample, SelectedRow]


def sample(number: int, *files: bytes | None, **more: Any) -> Selected:
    raw = RawSample(f"k{number}", "f", number, images=tuple(RawImage(f"{number}.png", f) for f in files), **more)
    facts = tuple(ImageFacts(hashlib.sha256(f or b"").digest(), 0, 4, 4) for f in files)
    return raw, SelectedRow(bytes(16), False, "", facts)


def picture(number: int, size: tuple[int, int] = (6, 4)) -> bytes:
    return png(Image.new("RGB", size, (number, number, number)))


def preparer(threads: int = 2, ahead: int = 8, how: Any = REFERENCE) -> Preparer:
    return Preparer(how, 4, 10**6, threads, ahead)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_samples_come_in_order_with_their_squares(threads: int) -> None:
    samples = [sample(n, *(picture(n + k) for k in range(n % 4))) for n in range(40)]
    found = list(preparer(threads).prepare("s", iter(samples), set()))
    assert [p.raw for p in found] == [raw for raw, _ in samples]
    for n, prepared in enumerate(found):
        assert [int(p.square()[0, 0, 0]) for p in prepared.pictures] == [n + k for k in range(n % 4)]


@pytest.mark.parametrize("threads", [0, 2])
def test_prompt_pictures_are_padded_and_others_cropped(threads: int) -> None:
    wide = picture(0, (40, 20))
    shown = (Segment(image=0, role="user"), Segment("And now?", role="user"), Segment(image=1, role="assistant"))
    (prepared,) = preparer(threads).prepare("s", iter([sample(1, wide, wide, segments=shown)]), set())
    padded, cropped = (p.square() for p in prepared.pictures)
    assert (padded[0] == 255).all()
    assert (padded[1:3] == 0).all()
    assert (cropped == 0).all()
    assert prepared.pictures[0].key != prepared.pictures[1].key


@pytest.mark.parametrize("threads", [0, 2])
def test_a_picture_whose_bytes_are_not_there_costs_its_sample(threads: int) -> None:
    raw, row = sample(1, picture(1), None)
    unread = RawSample("k2", "f", 2, images=(RawImage("far.png", None, error="read-error"),))
    found = list(preparer(threads).prepare("s", iter([(raw, row), (unread, sample(2, None)[1])]), set()))
    assert [p.fault for p in found] == [
        ("missing-image", "1.png: no such picture"),
        ("read-error", "far.png: its bytes could not be read"),
    ]


@pytest.mark.parametrize("threads", [0, 2])
def test_a_picture_changed_since_the_scan_stops_the_step(threads: int) -> None:
    raw, _ = sample(1, picture(1))
    changed = iter([sample(0, picture(0)), (raw, sample(1, picture(2))[1])])
    with pytest.raises(SourceError, match=r"source s: f: picture 1\.png changed after it was scanned"):
        list(preparer(threads).prepare("s", changed, set()))


def test_a_known_picture_and_one_being_decoded_are_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, go = [], threading.Event()

    def crop(data: bytes, side: int, max_pixels: int) -> Any:
        calls.append(data)
        assert go.wait(10)
        return np.zeros((side, side, 3), np.uint8)

    one, two = picture(1), picture(2)
    known = {hashlib.sha256(two).digest() + b"crop"}
    how = SimpleNamespace(crop_file=crop, pad_file=crop)
    samples = [sample(n, data) for n, data in enumerate([one, two, one, one, two])]
    found = []
    for prepared in preparer(4, how=how).prepare("s", iter(samples), known):
        found.append(prepared)
        if len(found) == 5:
            go.set()
    needed = [p.pictures[0] for p in found if p.pictures[0].key not in known]
    assert [picture.square().shape for picture in needed] == [(4, 4, 3)] * 3
    assert calls == [one]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 5), max_size=30), st.integers(1, 6))
def test_what_is_in_flight_is_bounded(weights: list[int], limit: int) -> None:
    out, most = 0, 0

    def source() -> Iterator[int]:
        nonlocal out, most
        for weight in weights:
            yield weight  # when the thread comes back, this one is in flight
            out += weight
            most = max(most, out)

    for weight in read_ahead(source(), lambda w: w, limit):
        time.sleep(0.0005)
        out -= weight
    assert out == 0
    assert most <= max(limit, max(weights, default=0))


@given(st.lists(st.integers()), st.integers(1, 4))
def test_order_and_errors_stay_in_their_places(things: list[int], limit: int) -> None:
    def source() -> Iterator[int]:
        yield from things
        raise SourceError("the file ends here")

    ahead = read_ahead(source(), lambda _: 1, limit)
    assert [next(ahead) for _ in things] == things
    with pytest.raises(SourceError, match="ends here"):
        next(ahead)


def test_giving_up_ends_the_thread() -> None:
    before = threading.active_count()
    ahead = read_ahead(iter(range(1000)), lambda _: 1, 3)
    assert [next(ahead), next(ahead)] == [0, 1]
    ahead.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
