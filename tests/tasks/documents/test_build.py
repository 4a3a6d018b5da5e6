from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infra.errors import StoreError
from model.vocabulary import BOS, EOS, Vocabulary
from tasks.documents.build import Empty, document
from tasks.documents.ids import count_modalities, pack_bits, unpack_bits

V = Vocabulary(image_codes=16, text_start=32, size=600)
PICTURE = [V.boi, 4 + 3, 4 + 15, V.eoi]
CODES = np.array([3, 15], "<u2").tobytes()
U, A = "user", "assistant"


def encode(text: str) -> list[int]:
    return [V.text_start + 3 + b for b in text.encode()]


def sample(kind: str, captions: list[str] = [], segments: list[tuple[str, str | int]] = [], images: int = 0) -> Any:  # noqa: B006
    return {
        "sample_id": bytes(16),
        "kind": kind,
        "category": "c",
        "held_out": False,
        "captions": captions,
        "segments": [
            {"role": role, "text": x if isinstance(x, str) else None, "image": x if isinstance(x, int) else None}
            for role, x in segments
        ],
        "images": [{"codes": CODES}] * images,
    }


def made(*args: Any, **kwargs: Any) -> dict[str, Any]:
    row = document(sample(*args, **kwargs), encode, V)
    row["ids"] = np.frombuffer(row["tokens"], "<u2").tolist()
    row["bits"] = unpack_bits(row["loss"], len(row["ids"])).astype(int).tolist() if row["loss"] else []
    return row


def test_pairs_keep_picture_and_captions_apart() -> None:
    row = made("pairs", ["ab", " ", "c"], images=1)
    assert np.frombuffer(row["picture"], "<u2").tolist() == PICTURE
    assert [np.frombuffer(c, "<u2").tolist() for c in row["captions"]] == [encode("ab"), encode("c")]
    assert (row["lengths"], row["image_tokens"], row["tokens"], row["loss"]) == ([8, 7], 4, b"", b"")


def test_texts_and_interleaved_documents() -> None:
    assert made("text", segments=[("", "hey")])["ids"] == [BOS, *encode("hey"), EOS]
    row = made("interleaved", segments=[("", "a "), ("", 0), ("", " b"), ("", 0)], images=1)
    assert row["ids"] == [BOS, *encode("a "), *PICTURE, *encode(" b"), *PICTURE, EOS]
    assert (row["lengths"], row["image_tokens"]) == ([len(row["ids"])], 8)


def test_conversations_count_their_answers_only() -> None:
    row = made("messages", segments=[(U, "p"), (A, "ab"), (U, 0), (U, "q"), (A, 0), (A, "z")], images=1)
    p, ab, q, z = map(encode, ("p", "ab", "q", "z"))
    assert row["ids"] == [BOS, *p, V.eot, *ab, V.eot, *PICTURE, *q, V.eot, *PICTURE, *z, EOS]
    assert row["bits"] == [0, 0, 0, 1, 1, 1, *[0] * 5, 0, *[1] * 4, 1, 1]


def test_a_trailing_prompt_is_left_out_and_a_leading_answer_gets_an_empty_one() -> None:
    assert made("messages", segments=[(U, "p"), (A, "a"), (U, "q")])["ids"] == [
        BOS,
        *encode("p"),
        V.eot,
        *encode("a"),
        EOS,
    ]
    row = made("messages", segments=[(A, "a")])
    assert (row["ids"], row["bits"]) == ([BOS, V.eot, *encode("a"), EOS], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("reason", "given"),
    [
        ("empty", sample("text", segments=[("", " \n")])),
        ("empty", sample("interleaved")),
        ("no-caption", sample("pairs", ["  "], images=1)),
        ("no-picture", sample("pairs", ["a"])),
        ("no-answer", sample("messages", segments=[(U, "p")])),
        ("no-answer", sample("messages", segments=[(U, "p"), (A, " ")])),
        ("missing-picture", sample("interleaved", segments=[("", 1)], images=1)),
    ],
)
def test_what_makes_no_document_says_why(reason: str, given: Any) -> None:
    with pytest.raises(Empty, match=f"^{reason}$"):
        document(given, encode, V)


def test_codes_of_another_codebook_are_refused() -> None:
    bad = sample("pairs", ["a"], images=1)
    bad["images"] = [{"codes": np.array([16], "<u2").tobytes()}]
    with pytest.raises(StoreError, match="image code 16"):
        document(bad, encode, V)


def test_modalities_are_counted() -> None:
    ids = np.array([BOS, *PICTURE, 40, 41, V.eot, EOS], np.uint16)
    assert count_modalities(ids, V) == {"text": 2, "image": 4, "control": 3}


def test_bits_come_back() -> None:
    bits = np.random.default_rng(0).random(37) < 0.5
    np.testing.assert_array_equal(unpack_bits(pack_bits(bits), 37), bits)
