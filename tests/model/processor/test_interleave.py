"""Segments and messages to ids and back, with a toy tokenizer of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.processor.interleave import Interleaver, Layout
from model.vocabulary import BOS, EOS, PAD, Vocabulary

V = Vocabulary(image_codes=16, text_start=32, size=600)
LAYOUT = Layout(
    bos=BOS,
    pad=PAD,
    eos=EOS,
    eot=V.eot,
    boi=V.boi,
    eoi=V.eoi,
    text_start=V.text_start,
    image_codes=16,
    codes_per_image=2,
)
PICTURE = [V.boi, 4 + 3, 4 + 15, V.eoi]


def encode(text: str) -> list[int]:
    return [V.text_start + b for b in text.encode()]


def decode(ids: Any) -> str:
    return bytes((n - V.text_start) % 256 for n in ids).decode("utf-8", "replace")


PLAIN = Interleaver(LAYOUT, encode, decode)


@pytest.mark.parametrize(
    "codes",
    [[3, 15], (3, 15), np.array([3, 15], np.uint16), torch.tensor([3, 15]), {"type": "image", "codes": [3, 15]}],
)
def test_segments_become_text_and_picture_ids_in_order(codes: Any) -> None:
    rows = PLAIN.documents([["a ", codes, {"type": "text", "text": "b"}], "<image>"], eos=True)
    assert rows.ids[0] == [BOS, *encode("a "), *PICTURE, *encode("b"), EOS]
    assert rows.ids[1] == [BOS, *encode("<image>"), EOS]
    assert rows.answers == [[0] * len(row) for row in rows.ids]
    assert PLAIN.documents([["a"], []], bos=False).ids == [encode("a"), []]


def test_conversations_take_turns_and_mark_answers() -> None:
    talk = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": ["p", [3, 15]]},
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": [{"type": "image", "codes": [3, 15]}]},
        {"role": "user", "content": "q"},
    ]
    rows = PLAIN.conversations([talk, [*talk, {"role": "assistant", "content": "z"}]])
    asked = [BOS, *encode("sp"), *PICTURE, V.eot, *encode("a"), *PICTURE, V.eot, *encode("q"), V.eot]
    assert rows.ids == [asked, [*asked, *encode("z"), EOS]]
    assert rows.answers == [
        [0] * 8 + [1] * 6 + [0] * 2,
        [0] * 8 + [1] * 6 + [0] * 2 + [1] * 2,
    ]
    (left_open,) = PLAIN.conversations([[{"role": "assistant", "content": "z"}]], open_answer=True).ids
    assert left_open == [BOS, V.eot, *encode("z")]


def test_pictures_become_codes_or_placeholders() -> None:
    def encode_images(images: list[Any]) -> list[list[int]]:
        return [[3, 15] if image == Path("left") else [0, 1] for image in images]

    left, right = {"type": "image", "image": Path("left")}, {"type": "image", "path": Path("right")}
    documents = [[left, "a", right], "b", [left]]
    encoded = Interleaver(LAYOUT, encode, decode, encode_images).documents(documents)
    assert encoded.ids[0] == [BOS, *PICTURE, *encode("a"), V.boi, 4, 5, V.eoi]
    assert encoded.ids[1:] == [[BOS, *encode("b")], [BOS, *PICTURE]]
    assert encoded.images == []

    layout = Layout(**{**_fields(LAYOUT), "placeholder": 30})
    waiting = Interleaver(layout, encode, decode)
    rows = waiting.documents([*documents, [[3, 15]]])
    assert rows.ids[2:] == [[BOS, V.boi, 30, 30, V.eoi], [BOS, *PICTURE]]
    assert rows.images == [Path("left"), Path("right"), Path("left")]
    assert waiting.segments(rows.ids[0]) == [{"type": "image"}, {"type": "text", "text": "a"}, {"type": "image"}]
    talk = [{"role": "user", "content": [left]}, {"role": "assistant", "content": [right, "a"]}]
    rows = waiting.conversations([talk])
    assert rows.answers == [[0] * 6 + [1] * 6]

    with pytest.raises(ValueError, match="nothing is known that encodes them; give their codes"):
        PLAIN.documents(documents)


def _fields(layout: Layout) -> dict[str, Any]:
    return {name: getattr(layout, name) for name in Layout.__slots__}


SEGMENTS = st.lists(
    st.one_of(st.text(min_size=1), st.lists(st.integers(0, 15), min_size=2, max_size=2)).map(
        lambda x: {"type": "text", "text": x} if isinstance(x, str) else {"type": "image", "codes": x}
    ),
    max_size=6,
)


@given(SEGMENTS)
def test_segments_come_back(segments: list[dict[str, Any]]) -> None:
    (ids,) = PLAIN.documents([segments], eos=True).ids
    joined: list[dict[str, Any]] = []
    for segment in segments:  # neighbouring texts are one
        if segment["type"] == "text" and joined and joined[-1]["type"] == "text":
            joined[-1] = {"type": "text", "text": joined[-1]["text"] + segment["text"]}
            continue
        joined.append(segment)
    assert PLAIN.segments(ids) == joined


@given(st.lists(st.integers(-10, 700) | st.sampled_from([V.boi, V.eoi, V.eot, 4, 5]), max_size=40))
def test_any_ids_can_be_read(ids: list[int]) -> None:
    for segment in PLAIN.segments(ids):
        assert segment["type"] == "text" or len(segment["codes"]) == 2
    assert len(PLAIN.messages(ids)) >= 1


def test_messages_come_back() -> None:
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "p"}]},
        {"role": "assistant", "content": [{"type": "image", "codes": [3, 15]}, {"type": "text", "text": "a"}]},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
    ]
    assert PLAIN.messages(PLAIN.conversations([talk]).ids[0]) == talk
    assert PLAIN.messages(PLAIN.conversations([talk[:2]]).ids[0]) == talk[:2]


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ([[3]], ValueError, "document 0: a picture of 1 codes; a picture has 2"),
        ([[3, 16]], ValueError, "document 0: image code 16; codes are 0 to 15"),
        ([[3, -1]], ValueError, "image code -1"),
        ([[3, 1.5]], TypeError, "integer"),
        ([None], TypeError, "document 0: None .NoneType. is neither a text nor a picture"),
        ([b"a"], TypeError, "neither a text nor a picture"),
        ([{"type": "text"}], ValueError, "neither a text nor a picture"),
        ([{"type": "video", "video": 1}], ValueError, "neither a text nor a picture"),
        ([{"type": "image", "url": "http://x"}], ValueError, "nothing is downloaded here"),
        *[
            ([{"type": "image", key: "/etc/hostname"}], ValueError, "must not say which file")
            for key in ("image", "path")
        ],
        ([{"type": "image", "image": {"path": "/etc/hostname"}}], TypeError, "neither a text nor a picture"),
        ([{"type": "image", "codes": [[3], [15]]}], TypeError, "codes are integers, row by row in one sequence"),
        ([{"type": "image", "codes": "ab"}], TypeError, "codes are integers, row by row in one sequence"),
        *[([kind(np.zeros((2, 2), int))], ValueError, "shape .2, 2. is neither") for kind in (np.array, torch.tensor)],
        (7, TypeError, "document 0 is 7 .int.; expected a list"),
    ],
)
def test_what_is_no_segment_is_refused(document: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PLAIN.documents([document])


@pytest.mark.parametrize(
    "conversation",
    [[], ["hello"], [{"content": "a"}], [{"role": "user"}], [{"role": "user", "content": 3}], "hello", 3],
)
def test_what_is_no_conversation_is_refused(conversation: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="conversation 0"):
        PLAIN.conversations([conversation])


def test_a_tokenizer_that_makes_control_ids_of_text_is_refused() -> None:
    other = Interleaver(LAYOUT, lambda text: [V.boi], decode)
    with pytest.raises(ValueError, match=f"makes id {V.boi} of text; text has ids from 32 on"):
        other.documents(["<racm3:break>"])


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    assert PLAIN.documents(["a\ud83c\udf4e"], bos=False).ids == [encode("a\ufffd\ufffd")]


def test_padding() -> None:
    rows = [[1, 2], [3]]
    assert PLAIN.padded(rows, 9, 3, "right") == [[1, 2, 9], [3, 9, 9]]
    assert PLAIN.padded(rows, 9, 2, "left") == [[1, 2], [9, 3]]
