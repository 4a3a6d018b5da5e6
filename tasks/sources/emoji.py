"""Sources of pairs from the embedded emoji: every drawing with its names, and a cleaner English-only set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

from pydantic import Field, field_validator

from infra.config import Config
from infra.errors import SourceError
from tasks.sources.base import BadRow, EmbeddedSource, RawSample, digest_of
from tasks.sources.emoji_data import LANGUAGES, LICENCE, Emoji, emoji_table, versions


class PairsOptions(Config):
    """Options of type ``emoji-pairs``."""

    skin_tones: bool = False
    """Also the drawings that differ from another only in skin tone: about 3,950 instead of 1,918."""
    languages: tuple[str, ...] = tuple(LANGUAGES)
    """Languages of the captions, by the ``emoji`` package's codes; English is always among them."""
    english_every: int = Field(default=2, ge=0)
    """Between two English names stand one fewer than this of the others; 1: English only; 0: each language once."""
    english_run: int = Field(default=2, ge=1)
    """English names in a row. A pair's picture and caption change places at every use: with one English name in every
    two captions, half of the pairs would show theirs always before the picture and the other half always after it."""

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(languages) - set(LANGUAGES))
        if unknown:
            raise ValueError(f"no names in language {', '.join(unknown)}; there are {', '.join(LANGUAGES)}")
        return languages


class QualityOptions(Config):
    """Options of type ``emoji-quality``."""

    groups: tuple[str, ...] = ()
    """Unicode groups that are wanted, e.g. ``Food & Drink``; empty: all."""


class EmojiPairs(EmbeddedSource[Emoji]):
    """One pair a drawing: its names in many languages, English first and often.

    The k-th use of a pair shows the next caption, so an English name between any two others makes half of them English.
    """

    def digest(self) -> str:
        return digest_of("emoji-pairs 2", *versions())

    def entries(self) -> Sequence[Emoji]:
        return emoji_table(self._options.skin_tones)

    def sample(self, row: int, entry: Emoji) -> RawSample | BadRow:
        others = [entry.names[code] for code in self._options.languages if code != "en" and code in entry.names]
        captions = with_english(entry.name, others, self._options.english_every, self._options.english_run)
        return RawSample(entry.file, entry.file, row, captions=captions, images=(entry.image(),), licence=LICENCE)

    @property
    def _options(self) -> PairsOptions:
        return self.options(PairsOptions)


class EmojiQuality(EmbeddedSource[Emoji]):
    """The second stage's cleaner pairs: one drawing, one English name, no variants."""

    def digest(self) -> str:
        return digest_of("emoji-quality 1", *versions())

    def entries(self) -> Sequence[Emoji]:
        groups = self.options(QualityOptions).groups
        found = _of_groups(groups)
        if not found:
            known = sorted({e.group for e in emoji_table() if e.group})
            raise SourceError(f"source {self.config.name}: no emoji in groups {groups}; there are {', '.join(known)}")
        return found

    def sample(self, row: int, entry: Emoji) -> RawSample | BadRow:
        captions, images = (entry.name,), (entry.image(),)
        return RawSample(entry.file, entry.file, row, captions=captions, images=images, licence=LICENCE)


def with_english(english: str, others: Sequence[str], every: int, run: int = 1) -> tuple[str, ...]:
    """The captions in order of use: ``run`` times English, ``every - 1`` others, and so on; 0: English, then all."""
    if every == 1 or not others:
        return (english,)
    if every == 0:
        return (english, *others)
    groups = [others[i : i + every - 1] for i in range(0, len(others), every - 1)]
    return tuple(itertools.chain.from_iterable((*[english] * run, *group) for group in groups))


@cache
def _of_groups(groups: tuple[str, ...]) -> tuple[Emoji, ...]:
    return tuple(e for e in emoji_table() if not groups or e.group in groups)
