"""Conversations from JSONL, in the forms they are found in: prompt and answer fields, or a list of turns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from infra.config import Config
from infra.storage import Storage
from tasks.sources.base import RawImage, RawSample, Segment
from tasks.sources.files import (
    UnusableRow,
    field,
    images_storage,
    load_image,
    optional_text,
    text_field,
)
from tasks.sources.interleaved import segments_from
from tasks.sources.jsonl import JsonlSource, Maker
from tasks.sources.lines import JsonRow

ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant"}
Category = Literal["text", "code", "visual-chat", "image-generation", "interleaved-generation", "safety"]


class MessageOptions(Config):
    """Options of type ``messages``. Fields may be dotted paths: ``instances.0.input``."""

    category: Category = "text"
    """The paper's categories (table 3); fine-tuning is balanced by them."""
    prompt: tuple[str, ...] = ("prompt",)
    """Fields that make the prompt, on lines of their own; empty ones and ones that a row lacks are passed over."""
    prompt_template: str = "{}"
    """The prompt with ``{}`` for what the fields hold: ``Draw: {}``; without it the template is the whole prompt."""
    image: str | None = None
    """Field with the name of a picture, or a list of names, that the user shows; it comes before the prompt."""
    response: str | None = "response"
    """Field with the answer: a text, or a list of segments as in type ``interleaved``."""
    answer_image: str | None = None
    """Field with the name of a picture that is the answer, after ``response`` where there is one."""
    turns: str | None = None
    """Field with a list of turns (``role`` and ``content``, or ``from`` and ``value``) instead of the fields above."""
    placeholder: str = "<image>"
    """In a turn's text, where the next picture of ``image`` is shown; pictures left over come first."""
    images: str | None = None
    """Folder that the pictures' names start from, relative to the folder that ``path`` is or lies in, or an address;
    None: that folder."""
    licence: str | None = "licence"


class MessageFiles(JsonlSource):
    """Conversations of JSONL files, one a line."""

    format = "messages 2"

    def maker(self, storage: Storage) -> Maker:
        options = self.options(MessageOptions)
        pictures = images_storage(self.config.name, storage, options.images)
        converse = _from_fields if options.turns is None else _from_turns

        def make(file: str, line: JsonRow) -> RawSample:
            segments, images = converse(line.content, options, pictures)
            return RawSample(
                line.key,
                file,
                line.row,
                segments=tuple(segments),
                images=tuple(images),
                licence=optional_text(line.content, options.licence),
                category=options.category,
            )

        return make


def _from_fields(row: dict[str, Any], options: MessageOptions, folder: Storage) -> tuple[list[Segment], list[RawImage]]:
    images = [load_image(folder, name) for name in _names(row, options.image)]
    segments = [Segment(image=n, role="user") for n in range(len(images))]
    prompt = _prompt(row, options)
    if prompt:
        segments.append(Segment(text=prompt, role="user"))
    if options.response is not None:
        answer = field(row, options.response)
        if isinstance(answer, str):
            answer = [answer]
        found, shown = segments_from(answer, folder, "assistant", len(images))
        segments += found
        images += shown
    if options.answer_image is not None:
        segments.append(Segment(image=len(images), role="assistant"))
        images.append(load_image(folder, text_field(row, options.answer_image)))
    return segments, images


def _prompt(row: dict[str, Any], options: MessageOptions) -> str:
    parts, without = list[str](), list[str]()
    for name in options.prompt:
        try:
            part = text_field(row, name)
        except UnusableRow as e:
            if e.error != "missing-field":
                raise
            without.append(e.message)
            continue
        if part.strip():
            parts.append(part)
        else:
            without.append(f"field {name!r} is empty")
    text = "\n".join(parts)
    if "{}" not in options.prompt_template:
        return options.prompt_template
    if not text:
        raise UnusableRow("missing-field", f"no prompt: {'; '.join(without)}")
    return options.prompt_template.replace("{}", text)


def _names(row: dict[str, Any], name: str | None) -> list[str]:
    """The names of a picture field: one, several, or none where there is no such option."""
    if name is None:
        return []
    value = field(row, name)
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(n, str) for n in names):
        raise UnusableRow("bad-field", f"field {name!r} holds something other than file names")
    return names


def _from_turns(row: dict[str, Any], options: MessageOptions, folder: Storage) -> tuple[list[Segment], list[RawImage]]:
    assert options.turns is not None
    turns = field(row, options.turns)
    if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
        raise UnusableRow("bad-field", f"field {options.turns!r} is not a list of turns")
    images = [load_image(folder, name) for name in _names(row, options.image)] if options.image in row else []
    segments: list[Segment] = []
    system, shown = "", 0
    for turn in turns:
        name = str(turn.get("role", turn.get("from")))
        text = text_field(turn, "content" if "content" in turn else "value")
        if name == "system":
            system += f"{text}\n\n"
            continue
        if name not in ROLES:
            raise UnusableRow("bad-field", f"a turn has role {name!r}; expected one of {', '.join(ROLES)} or system")
        if ROLES[name] == "user":
            text, system = system + text, ""
        found, shown = _split(text, ROLES[name], options.placeholder, shown, len(images))
        segments += found
    left = range(shown, len(images))
    # Pictures come in the order in which they are shown: those without a place are renumbered to the front.
    order = {old: new for new, old in enumerate([*left, *range(shown)])}
    moved = [s if s.image is None else replace(s, image=order[s.image]) for s in segments]
    first = [Segment(image=n, role="user") for n in range(len(left))]
    return first + moved, [images[n] for n in (*left, *range(shown))]


def _split(text: str, role: str, placeholder: str, shown: int, count: int) -> tuple[list[Segment], int]:
    """A turn's text with a picture at each placeholder, as long as there are pictures; and how many are shown now."""
    segments: list[Segment] = []
    parts = text.split(placeholder, count - shown) if placeholder else [text]
    for number, part in enumerate(parts):
        if number:
            segments.append(Segment(image=shown, role=role))
            shown += 1
        if part:
            segments.append(Segment(text=part, role=role))
    return segments, shown
