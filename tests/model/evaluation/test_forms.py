"""The forms must be those that training saw: pairs as ``realise`` makes them, conversations as ``document`` does."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.evaluation.forms import ChatForm, DocumentForm, Pair
from model.vocabulary import Vocabulary
from tasks.documents.build import document
from tasks.documents.captions import image_first, realise

V = Vocabulary(image_codes=16, text_start=32, size=600)
PAIR = Pair("00" * 16, "red apple", (3, 1, 15, 0))


def encode(text: str) -> list[int]:
    return [V.text_start + b for b in text.encode()]


def sample(kind: str, **fields: Any) -> dict[str, Any]:
    image = {"codes": np.array(PAIR.codes, "<u2").tobytes()}
    shared = {"sample_id": b"\0" * 16, "kind": kind, "category": "", "held_out": False, "captions": [], "segments": []}
    return {**shared, "images": [image], **fields}


def test_documents_are_those_of_pre_training() -> None:
    row = document(sample("pairs", captions=[PAIR.name]), encode, V)
    form = DocumentForm(V, encode)
    made = {image_first(row["sample_id"], k, 0): realise(row, k, 0).tolist() for k in range(2)}
    assert [*form.ask_name(PAIR), *form.name(PAIR)] == made[True]
    drawn = [*form.ask_picture(PAIR), *form.picture(PAIR)]
    assert drawn == made[False][: len(drawn)]
    assert made[False][len(drawn) :] == [V.eoi, 2]


def test_conversations_are_those_of_fine_tuning() -> None:
    form = ChatForm(V, encode, "What is this?", "Draw: {name}")
    shown = [
        {"role": "user", "image": 0, "text": None},
        {"role": "user", "image": None, "text": "What is this?"},
        {"role": "assistant", "image": None, "text": PAIR.name},
    ]
    row = document(sample("messages", segments=shown), encode, V)
    assert [*form.ask_name(PAIR), *form.name(PAIR)] == np.frombuffer(row["tokens"], "<u2").tolist()
    drawn = [
        {"role": "user", "image": None, "text": "Draw: red apple"},
        {"role": "assistant", "image": 0, "text": None},
    ]
    row = document(sample("messages", segments=drawn), encode, V)
    made = [*form.ask_picture(PAIR), *form.picture(PAIR), V.eoi, 2]
    assert made == np.frombuffer(row["tokens"], "<u2").tolist()
