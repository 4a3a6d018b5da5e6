"""How many tokens a text tokenizer needs: per word, per character and per byte, by source, by language and for code.

Measured on held-out texts. A text's language is the one that scanning would tell it to be in. Samples of the category
``code`` count as code; sources of code are named in the recipe (``text_tokenizer.code``), and the report puts what they
hold together. All figures are sums, so that they can be added up in any grouping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from model.text_tokenizer.codec import TextTokenizer
from tasks.scan.languages import UNDETERMINED

CODE = "code"
UNSPACED = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh", "zxx", UNDETERMINED, CODE})
"""Where words cannot be counted by the spaces between them."""
GROUP_BYTES = 200_000
"""Held-out text measured of each language of a source."""
SOURCE_TEXTS = 20_000
"""Held-out texts of a source that are looked at."""
TEXT_CHARS = 50_000
"""Characters of a text that are measured, from its start."""

Sums = dict[str, int]
"""``bytes``, ``characters``, ``words`` and ``tokens`` of some texts; words are 0 where they cannot be counted."""


@dataclass(slots=True)
class HeldOut:
    """Collects held-out texts, a bounded number of each language of each source."""

    language_of: Callable[[str], str]
    texts: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """By source and language."""
    _bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    _seen: Counter[str] = field(default_factory=Counter)

    def add(self, source: str, text: str, category: str = "") -> None:
        """A text of a sample of some category."""
        if not text.strip() or self._seen[source] >= SOURCE_TEXTS:
            return
        self._seen[source] += 1
        text = text[:TEXT_CHARS]
        group = CODE if category == CODE else self.language_of(text)
        if self._bytes[source, group] < GROUP_BYTES:
            self._bytes[source, group] += len(text.encode("utf-8", "replace"))
            self.texts.setdefault(source, {}).setdefault(group, []).append(text)


def measure(tokenizer: TextTokenizer, texts: Mapping[str, Mapping[str, Iterable[str]]]) -> dict[str, dict[str, Sums]]:
    """Sums by source and language, both in the order of their names."""
    return {
        source: {group: _sums(tokenizer, groups[group], group) for group in sorted(groups)}
        for source, groups in sorted(texts.items())
    }


def _sums(tokenizer: TextTokenizer, texts: Iterable[str], group: str) -> Sums:
    found = {"bytes": 0, "characters": 0, "words": 0, "tokens": 0}
    for text in texts:
        found["bytes"] += len(text.encode("utf-8", "replace"))
        found["characters"] += len(text)
        found["words"] += 0 if group in UNSPACED else len(text.split())
        found["tokens"] += len(tokenizer.encode(text))
    return found


def by_source(measured: Mapping[str, Mapping[str, Sums]]) -> dict[str, Sums]:
    """All of a source together. Its words are not counted: often those of only some of its texts could be."""
    return {source: total(groups.values()) | {"words": 0} for source, groups in measured.items()}


def by_language(measured: Mapping[str, Mapping[str, Sums]], code: Iterable[str]) -> dict[str, Sums]:
    """By language over all sources, the one with most text first; code, and what nobody could tell, at the end.

    ``code`` names sources whose texts are code whatever language they seem to be in.
    """
    sources, groups = set(code), dict[str, list[Sums]]()
    for source, languages in measured.items():
        for language, sums in languages.items():
            groups.setdefault(CODE if source in sources else language, []).append(sums)
    found = {group: total(parts) for group, parts in groups.items()}
    if CODE in found:
        found[CODE]["words"] = 0
    last = {UNDETERMINED: 1, CODE: 2}
    return dict(sorted(found.items(), key=lambda entry: (last.get(entry[0], 0), -entry[1]["bytes"], entry[0])))


def total(parts: Iterable[Sums]) -> Sums:
    """Sums added up."""
    found: Counter[str] = Counter()
    for sums in parts:
        found.update(sums)
    return dict(found)


def ratios(sums: Sums) -> dict[str, float | None]:
    """``tokens_per_word`` (None where words cannot be counted), ``tokens_per_character``, ``bytes_per_token``."""
    tokens = sums["tokens"]
    return {
        "tokens_per_word": tokens / sums["words"] if sums["words"] else None,
        "tokens_per_character": tokens / sums["characters"] if sums["characters"] else None,
        "bytes_per_token": sums["bytes"] / tokens if tokens else None,
    }
