"""Samples to documents: the ids of pairs, texts, interleaved documents and conversations.

- a pair keeps its picture and its captions apart; ``captions.realise`` joins them at each occurrence;
- a text or interleaved document is ``<s> segment … </s>``, a picture among the segments BOI codes EOI;
- a conversation is ``<s> prompt EOT answer </s>``, with more turns ``<s> p1 EOT a1 EOT p2 EOT a2 </s>``, and its loss
  bits are set on the answers and on the token that ends each of them, EOT or ``</s>`` (paper, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from model.vocabulary import BOS, EOS, Vocabulary
from tasks.documents.ids import Ids, is_image, pack_bits, picture_ids

Encode = Callable[[str], list[int]]
"""Text to vocabulary ids, none below ``text_start``."""

Row = dict[str, Any]


class Empty(Exception):
    """The sample makes no document; the message is the ledger's reason, in kebab-case."""


def document(sample: Mapping[str, Any], encode: Encode, vocabulary: Vocabulary) -> Row:
    """A sample-store row as a document-store row; :class:`Empty` if nothing is left of it."""
    pictures = [picture_ids(image["codes"], vocabulary) for image in sample["images"]]
    if sample["kind"] == "pairs":
        content = _pair(sample["captions"], pictures, encode)
    elif sample["kind"] == "tokens":
        ids = np.frombuffer(sample["tokens"], "<u2")
        if not len(ids):
            raise Empty("empty")
        content = _finished(np.concatenate([[BOS], ids, [EOS]]).astype(np.uint16), vocabulary)
    elif sample["kind"] == "messages":
        content = _conversation(sample["segments"], pictures, encode, vocabulary)
    else:
        if not any(map(_says_something, sample["segments"])):
            raise Empty("empty")
        ids = _join(sample["segments"], pictures, encode)
        content = _finished(np.concatenate([[BOS], ids, [EOS]]), vocabulary)
    shared = {key: sample[key] for key in ("sample_id", "kind", "category", "held_out")}
    return {**shared, "picture": b"", "captions": [], "loss": b"", "tokens": b"", **content}


def _pair(captions: Sequence[str], pictures: Sequence[Ids], encode: Encode) -> Row:
    texts = [np.array(encode(caption), "<u2") for caption in captions if caption.strip()]
    if not texts or not pictures:
        raise Empty("no-caption" if pictures else "no-picture")
    picture = pictures[0]
    return {
        "picture": picture.astype("<u2").tobytes(),
        "captions": [text.tobytes() for text in texts],
        "lengths": [len(picture) + len(text) + 2 for text in texts],
        "image_tokens": len(picture),
    }


def _conversation(
    segments: Sequence[Mapping[str, Any]], pictures: Sequence[Ids], encode: Encode, vocabulary: Vocabulary
) -> Row:
    """Neighbouring segments of one side are one turn; what follows the last answer is left out."""
    if not any(segment["role"] == "assistant" and _says_something(segment) for segment in segments):
        raise Empty("no-answer")
    turns = [
        (answer, _join(group, pictures, encode))
        for answer, group in groupby(segments, key=lambda segment: segment["role"] == "assistant")
    ]
    if not turns[-1][0]:
        turns.pop()
    if turns[0][0]:  # the answer comes first: to an empty prompt
        turns.insert(0, (False, np.zeros(0, np.uint16)))
    pieces, bits = [np.array([BOS], np.uint16)], [np.zeros(1, np.bool_)]
    for number, (answer, ids) in enumerate(turns):
        end = EOS if number == len(turns) - 1 else vocabulary.eot
        pieces += [ids, np.array([end], np.uint16)]
        bits.append(np.full(len(ids) + 1, answer))
    return _finished(np.concatenate(pieces), vocabulary) | {"loss": pack_bits(np.concatenate(bits))}


def _says_something(segment: Mapping[str, Any]) -> bool:
    return segment["image"] is not None or bool((segment["text"] or "").strip())


def _join(segments: Iterable[Mapping[str, Any]], pictures: Sequence[Ids], encode: Encode) -> Ids:
    pieces = [np.zeros(0, np.uint16)]
    for segment in segments:
        if segment["image"] is None:
            pieces.append(np.array(encode(segment["text"] or ""), np.uint16))
        elif 0 <= segment["image"] < len(pictures):
            pieces.append(pictures[segment["image"]])
        else:
            raise Empty("missing-picture")
    return np.concatenate(pieces)


def _finished(ids: Ids, vocabulary: Vocabulary) -> Row:
    return {
        "tokens": ids.astype("<u2").tobytes(),
        "lengths": [len(ids)],
        "image_tokens": int(is_image(ids, vocabulary).sum()),
    }
