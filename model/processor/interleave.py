"""Texts, pictures and conversations to ids and back, put together from ids: no text stands for a picture or a turn.

What a user writes is tokenised first and by itself; the ids of pictures and turns are then put between the results. So
``<image>`` or ``<racm3:break>`` in a text stays text. The ids are those of the document store::

    document       <s> text BOI codes EOI text </s>
    conversation   <s> prompt EOT answer EOT prompt EOT answer </s>

This file needs nothing but Python: every exported model carries a copy of it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, Protocol

_SURROGATES = re.compile("[\ud800-\udfff]")
"""Half surrogate pairs, which are no characters."""


class Ids(Protocol):
    """What the ids of a vocabulary mean, as far as :func:`spans` asks."""

    @property
    def boi(self) -> int: ...
    @property
    def eoi(self) -> int: ...
    @property
    def text_start(self) -> int: ...
    def is_image_code(self, token: int, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch ``start … stop`` (exclusive) of ids of one kind. A picture's span includes its BOI and EOI."""

    kind: Literal["text", "image", "control"]
    start: int
    stop: int
    whole: bool = True
    """False for a picture that lacks its BOI, its EOI or some of its codes."""


def spans(tokens: Sequence[int], ids: Ids, codes_per_image: int) -> list[Span]:
    """Any ids as spans, in order and without gaps; total, so that damaged sequences can be looked at too."""
    found: list[Span] = []
    i = 0
    while i < len(tokens):
        start, token = i, tokens[i]
        i += 1
        if token == ids.boi or ids.is_image_code(token):
            while i < len(tokens) and ids.is_image_code(tokens[i]):
                i += 1
            closed = i < len(tokens) and tokens[i] == ids.eoi
            i += closed
            whole = token == ids.boi and closed and i - start == codes_per_image + 2
            found.append(Span("image", start, i, whole))
        elif token == ids.eoi:
            found.append(Span("image", start, i, whole=False))
        elif token >= ids.text_start:
            while i < len(tokens) and tokens[i] >= ids.text_start:
                i += 1
            found.append(Span("text", start, i))
        else:
            found.append(Span("control", start, i))
    return found


@dataclass(frozen=True, slots=True)
class Layout:
    """The ids of the vocabulary that text does not have, and how many codes make a picture."""

    bos: int
    pad: int
    eos: int
    eot: int
    """End of turn: between a prompt and its answer."""
    boi: int
    eoi: int
    text_start: int
    """Text has this id and those above."""
    image_codes: int
    codes_per_image: int
    first_code: int = 4
    placeholder: int | None = None
    """What stands for each code of a picture that the model encodes itself; None where pictures come encoded."""

    def is_image_code(self, token: int) -> bool:
        return self.first_code <= token < self.first_code + self.image_codes or token == self.placeholder


@dataclass(slots=True)
class Rows:
    """Documents or conversations as ids."""

    ids: list[list[int]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    """1 for each id of an answer and for the one that ends it, as fine-tuning counts them; else 0."""
    images: list[Any] = field(default_factory=list)
    """The pictures that stand as placeholders, over all rows in order."""


class Interleaver:
    """Documents and conversations to ids and back.

    A segment is a text; a picture's codes, ``codes_per_image`` codebook indices in raster order as a list, 1-d array or
    tensor of integers; a picture; or what chat messages hold: ``{"type": "text", "text": …}``,
    ``{"type": "image", "image": …}`` and ``{"type": "image", "codes": …}``. What a picture may be is up to
    ``encode_images``; a file is named by a ``pathlib.Path``, never by a string, since a string may have come from
    somebody else, and nobody else chooses which files are opened.

    Args:
        layout: The ids.
        encode: A text's ids, all at least ``text_start``.
        decode: The text of text ids.
        encode_images: The codes of pictures, a sequence each. None: they become placeholders, for the model to encode.
    """

    def __init__(
        self,
        layout: Layout,
        encode: Callable[[str], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        encode_images: Callable[[list[Any]], Sequence[Sequence[int]]] | None = None,
    ) -> None:
        self.layout = layout
        self._encode, self._decode, self._encode_images = encode, decode, encode_images

    def documents(self, documents: Iterable[Any], *, bos: bool = True, eos: bool = False) -> Rows:
        """Each document is a text or a list of segments. ``eos`` ends them with ``</s>``, as in training.

        Raises:
            ValueError, TypeError: What is no segment, or codes that are not a picture's.
        """
        rows = Rows()
        for number, document in enumerate(documents):
            segments = [document] if isinstance(document, str) else document
            where = f"document {number}"
            ids = self._join(_listed(segments, where), rows.images, where)
            rows.ids.append([self.layout.bos] * bos + ids + [self.layout.eos] * eos)
            rows.answers.append([0] * len(rows.ids[-1]))
        return self._encoded(rows)

    def conversations(self, conversations: Iterable[Any], *, open_answer: bool = False) -> Rows:
        """Each conversation is a list of messages ``{"role": …, "content": a text or a list of segments}``.

        Neighbouring messages of one side are one turn; every role but ``assistant`` is the asking side. A conversation
        that ends with a question ends with the end of turn, so that the answer comes next; one that ends with an answer
        ends with ``</s>``, or, if ``open_answer``, where that answer goes on.

        Raises:
            ValueError, TypeError: What is no message or segment, or codes that are not a picture's.
        """
        rows = Rows()
        for number, conversation in enumerate(conversations):
            messages = [_message(m, f"conversation {number}") for m in _listed(conversation, f"conversation {number}")]
            if not messages:
                raise ValueError(f"conversation {number} has no messages")
            turns = [(answers, list(turn)) for answers, turn in groupby(messages, key=lambda m: m[0] == "assistant")]
            if turns[0][0]:  # the answer comes first: to an empty prompt
                turns.insert(0, (False, []))
            ids, bits = [self.layout.bos], [0]
            for place, (answers, turn) in enumerate(turns):
                where = f"conversation {number}"
                made = [n for _, segments in turn for n in self._join(segments, rows.images, where)]
                if not answers or place < len(turns) - 1:
                    made.append(self.layout.eot)
                elif not open_answer:
                    made.append(self.layout.eos)
                ids += made
                bits += [int(answers)] * len(made)
            rows.ids.append(ids)
            rows.answers.append(bits)
        return self._encoded(rows)

    def segments(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """Any ids as segments: controls, and pictures that are not whole, are left out.

        A picture is ``{"type": "image", "codes": […]}``, and ``{"type": "image"}`` where it stands as placeholders.
        """
        tokens, found = [operator.index(n) for n in ids], list[dict[str, Any]]()
        for span in spans(tokens, self.layout, self.layout.codes_per_image):
            inside = tokens[span.start : span.stop]
            if span.kind == "text":
                found.append({"type": "text", "text": self._decode(inside)})
            elif span.kind == "image" and span.whole:
                codes = [n - self.layout.first_code for n in inside[1:-1]]
                known = all(code < self.layout.image_codes for code in codes)
                found.append({"type": "image", "codes": codes} if known else {"type": "image"})
        return found

    def messages(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """The ids of a conversation as messages: user and assistant take turns, a turn ends at each end of turn."""
        turns: list[list[int]] = [[]]
        for token in map(operator.index, ids):
            if token == self.layout.eot:
                turns.append([])
            else:
                turns[-1].append(token)
        found = [
            {"role": ("user", "assistant")[place % 2], "content": self.segments(turn)}
            for place, turn in enumerate(turns)
        ]
        return found if len(found) < 2 or found[-1]["content"] else found[:-1]

    def padded(self, rows: Sequence[Sequence[int]], value: int, length: int, side: str) -> list[list[int]]:
        """The rows with ``value`` before (``side`` "left") or behind them up to ``length``."""
        fill = [[value] * (length - len(row)) for row in rows]
        return [[*more, *row] if side == "left" else [*row, *more] for row, more in zip(rows, fill, strict=True)]

    def _join(self, segments: Iterable[Any], images: list[Any], where: str) -> list[int]:
        """The ids of segments; of a picture the number in ``images``, as a negative id, until it is known."""
        ids: list[int] = []
        for segment in segments:
            kind, value = _told_apart(segment, where)
            if kind == "text":
                ids += self._text(value, where)
            elif kind == "codes":
                ids += self._picture(value, where)
            else:
                images.append(value)
                ids.append(-len(images))
        return ids

    def _text(self, text: str, where: str) -> Sequence[int]:
        ids = self._encode(_SURROGATES.sub("\ufffd", text))
        if ids and min(ids) < self.layout.text_start:
            raise ValueError(
                f"{where}: the tokenizer makes id {min(ids)} of text; text has ids from {self.layout.text_start} on. "
                "It is not the tokenizer that this processor belongs to."
            )
        return ids

    def _picture(self, codes: Iterable[int], where: str) -> list[int]:
        layout = self.layout
        try:
            found = [operator.index(code) for code in codes]
        except TypeError as e:
            raise TypeError(f"{where}: a picture's codes are integers, row by row in one sequence ({e})") from e
        if len(found) != layout.codes_per_image:
            raise ValueError(f"{where}: a picture of {len(found)} codes; a picture has {layout.codes_per_image}")
        wrong = [code for code in found if not 0 <= code < layout.image_codes]
        if wrong:
            raise ValueError(f"{where}: image code {wrong[0]}; codes are 0 to {layout.image_codes - 1}")
        return [layout.boi, *(code + layout.first_code for code in found), layout.eoi]

    def _encoded(self, rows: Rows) -> Rows:
        """The rows with every picture's ids in its place."""
        layout = self.layout
        if not rows.images:
            return rows
        if self._encode_images is not None:
            codes = self._encode_images(rows.images)
            known = [self._picture(c, f"picture {n}") for n, c in enumerate(codes)]
            rows.images = []
        elif layout.placeholder is not None:
            known = [[layout.boi, *[layout.placeholder] * layout.codes_per_image, layout.eoi]] * len(rows.images)
        else:
            raise ValueError("pictures are among the segments and nothing is known that encodes them; give their codes")
        for number, ids in enumerate(rows.ids):
            filled = [
                (known[-n - 1], bit) if n < 0 else ([n], bit) for n, bit in zip(ids, rows.answers[number], strict=True)
            ]
            rows.ids[number] = [n for made, _ in filled for n in made]
            rows.answers[number] = [bit for made, bit in filled for _ in made]
        return rows


def _listed(value: Any, where: str) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    raise TypeError(f"{where} is {_kind(value)}; expected a list")


def _message(message: Any, where: str) -> tuple[str, list[Any]]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
        raise ValueError(f"{where}: expected messages with `role` and `content`, got {_kind(message)}")
    content = message["content"]
    return message["role"], [content] if isinstance(content, str) else _listed(content, f"{where}: content")


def _told_apart(segment: Any, where: str) -> tuple[str, Any]:
    """``text``, ``codes`` or ``image``, and the thing itself."""
    if isinstance(segment, Mapping):
        kind, text = segment.get("type"), segment.get("text")
        if kind == "text" and isinstance(text, str):
            return "text", text
        if kind == "image" and segment.get("codes") is not None:
            return "codes", segment["codes"]
        picture = segment.get("image", segment.get("path"))
        if kind == "image" and picture is not None:
            return "image", _picture_of(picture, where)
        if kind == "image" and "url" in segment:
            raise ValueError(f"{where}: a picture by `url`; nothing is downloaded here: give the picture or its path")
        raise ValueError(f"{where}: {dict(segment)!r:.200} is neither a text nor a picture")
    if isinstance(segment, str):
        return "text", segment
    if isinstance(segment, list | tuple) or getattr(segment, "ndim", None) == 1:
        return "codes", segment
    return "image", _picture_of(segment, where)


def _picture_of(value: Any, where: str) -> Any:
    if isinstance(value, str):
        raise ValueError(
            f"{where}: a picture by the string {value!r:.80}; give the picture or a pathlib.Path: what comes from "
            "somebody else must not say which file is opened"
        )
    if value is None or isinstance(value, bytes | int | float | list | tuple | Mapping):
        raise TypeError(f"{where}: {_kind(value)} is neither a text nor a picture")
    if getattr(value, "ndim", None) in (0, 1, 2):
        raise ValueError(
            f"{where}: an array of shape {tuple(value.shape)} is neither a picture, which has colours, nor its codes, "
            "which are one sequence: flatten them row by row"
        )
    return value


def _kind(value: Any) -> str:
    return f"{value!r:.80} ({type(value).__name__})"
