"""Filters: why a sample is left out although it can be read. Those of the recipe, and those that a user plugs in.

A plug-in is a class, named in ``scan.filters`` by import path::

    class NoShouting:
        def __init__(self, options: dict[str, Any]) -> None: ...
        def reason(self, sample: RawSample, facts: Facts) -> str: ...

It is made once in each worker. ``reason`` returns ``""`` for what may stay, else the name under which the ledger counts
it. It must depend on nothing but the sample: the same samples must be left out whenever a part is made again.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

from infra.errors import RecipeError
from tasks.scan.config import PlugIn, ScanConfig
from tasks.scan.facts import ImageFacts
from tasks.sources.base import RawSample
from tasks.sources.config import Kind


@dataclass(frozen=True, slots=True)
class Facts:
    """What a filter may know of a sample besides the sample itself."""

    kind: Kind
    source: str
    licence: str
    """The sample's own, else its source's."""
    images: tuple[ImageFacts, ...]
    language: str
    """Empty where the recipe does not ask for it."""


class Filter(Protocol):
    """A filter plugged in; see this module's text."""

    def __init__(self, options: Mapping[str, Any]) -> None: ...

    def reason(self, sample: RawSample, facts: Facts) -> str: ...


def load_class(path: str, key: str) -> Any:
    """The class of an import path; RecipeError names the recipe's key if there is none."""
    module, _, name = path.partition(":")
    try:
        if not name:
            raise ImportError("expected package.module:Class")
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise RecipeError(f"{key}: {path!r} cannot be imported ({e}). Is it installed where the workers run?") from e


def make_filters(plug_ins: Sequence[PlugIn]) -> list[Filter]:
    """The filters that a recipe plugs in; RecipeError if one cannot be imported or made."""
    made = []
    for number, plug_in in enumerate(plug_ins):
        key = f"scan.filters.{number}"
        cls = load_class(plug_in.type, key)
        try:
            made.append(cls(dict(plug_in.options)))
        except Exception as e:  # whatever a foreign class raises, the user should read which one it was
            raise RecipeError(f"{key}: {plug_in.type} cannot be made of its options ({type(e).__name__}: {e})") from e
    return made


def filtered(sample: RawSample, facts: Facts, config: ScanConfig) -> str:
    """The name of the first of the recipe's plain filters that the sample does not pass; empty if it passes all."""
    if is_empty(sample, facts.kind):
        return "empty"
    for image in facts.images:
        short, long = sorted((image.width, image.height))
        if config.min_side is not None and short < config.min_side:
            return "min-side"
        if config.max_aspect is not None and long > config.max_aspect * short:
            return "max-aspect"
    if facts.kind == "pairs":
        longest = max(len(c.strip()) for c in sample.captions)
        reason = _length("caption-chars", longest, config.min_caption_chars, config.max_caption_chars)
    elif facts.kind in ("text", "interleaved"):
        length = sum(len(s.text.strip()) for s in sample.segments if s.text)
        reason = _length("text-chars", length, config.min_text_chars, config.max_text_chars)
    else:
        reason = ""
    if not reason and config.licences is not None and not _licensed(facts.licence, config.licences):
        return "licence"
    return reason


def is_empty(sample: RawSample, kind: Kind) -> bool:
    """Nothing to learn: a pair without a caption, a document without content, a conversation without an answer."""
    if kind == "pairs":
        return not any(c.strip() for c in sample.captions)
    if kind == "tokens":
        return not sample.tokens
    answers = (s for s in sample.segments if kind != "messages" or s.role == "assistant")
    return not any(s.image is not None or (s.text or "").strip() for s in answers)


def _length(name: str, length: int, least: int | None, most: int | None) -> str:
    if least is not None and length < least:
        return f"min-{name}"
    return f"max-{name}" if most is not None and length > most else ""


def _licensed(licence: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(licence.strip().casefold(), p.strip().casefold()) for p in patterns)
