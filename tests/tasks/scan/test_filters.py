from __future__ import annotations

from typing import Any

import pytest

from infra.errors import RecipeError
from tasks.scan.config import PlugIn, ScanConfig
from tasks.scan.facts import Finding
from tasks.scan.filters import Facts, make_filters
from tasks.sources.base import RawSample, Segment
from tests.tasks.scan.test_examine import document, look, pair

TEXT = document(Segment("The quick brown fox jumps over the lazy dog, and the dog does not mind it at all."))


class NoShouting:
    """What a user's own filter looks like."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._most = float(options["most"])

    def reason(self, sample: RawSample, facts: Facts) -> str:
        text = "".join(s.text or "" for s in sample.segments) + "".join(sample.captions)
        if "!raise" in text:
            raise ZeroDivisionError("on purpose")
        return "shouting" if sum(c.isupper() for c in text) > self._most * len(text) else ""


SHOUTING = {"type": f"{__name__}:NoShouting", "options": {"most": 0.5}}


def fate(found: Finding) -> tuple[str, str]:
    return found.state, found.reason


@pytest.mark.parametrize(
    ("licences", "licence", "reason"),
    [
        (("CC BY*",), "cc by-sa 4.0", ""),
        (("CC BY*",), "CC0", "licence"),
        (("cc0", "PD"), "", ""),
        (("MIT",), "", "licence"),
        (("CC BY ?.0",), "CC BY 4.0", ""),
        ((), "CC0", "licence"),
    ],
)
def test_licences_are_patterns_on_the_samples_own_or_its_sources(
    licences: tuple[str, ...], licence: str, reason: str
) -> None:
    found = look(pair("x", licence=licence), "pairs", licences=licences)
    assert fate(found) == ("filtered" if reason else "kept", reason)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"max_caption_chars": 3}, "max-caption-chars"),
        ({"max_caption_chars": 4}, ""),
        ({"min_caption_chars": 5}, "min-caption-chars"),
    ],
)
def test_caption_lengths_are_of_the_longest(config: dict[str, Any], reason: str) -> None:
    assert look(pair("a", " four "), "pairs", **config).reason == reason


def test_text_lengths_are_of_all_texts_together() -> None:
    two = document(Segment("ab "), Segment("cd"))
    assert look(two, "interleaved", max_text_chars=3).reason == "max-text-chars"
    assert look(two, "interleaved", max_text_chars=4, min_text_chars=4).reason == ""


def test_languages_are_told_and_recorded() -> None:
    german = document(Segment("Der schnelle braune Fuchs springt über den Hund, und der Hund hat nichts dagegen."))
    assert look(TEXT, "text").language == ""
    assert look(TEXT, "text", language=True).language == "en"
    assert look(german, "text", language=True).language == "de"
    assert fate(look(german, "text", languages=["en"])) == ("filtered", "language")
    assert fate(look(german, "text", languages=["en", "de"])) == ("kept", "")
    digits = document(Segment("1 2 3 4"))
    assert look(digits, "text", language=True).language == "und"
    assert look(digits, "text", languages=["en"]).reason == "language"
    assert look(TEXT, "text", language=True, min_language_score=1).language == "und"


def test_only_the_first_characters_tell_the_language() -> None:
    mixed = document(Segment("The dog does not mind it at all, I think. " + "Der Hund hat gar nichts dagegen. " * 50))
    assert look(mixed, "text", language=True, language_chars=41).language == "en"
    assert look(mixed, "text", language=True, language_chars=2000).language == "de"


def test_a_filter_of_ones_own_names_its_reason_and_an_error_costs_the_sample() -> None:
    for text, expected in (("calm", ("kept", "")), ("LOUD", ("filtered", "shouting"))):
        assert fate(look(document(Segment(text)), "text", filters=[SHOUTING])) == expected
    broken = look(document(Segment("!raise")), "text", filters=[SHOUTING])
    assert fate(broken) == ("quarantined", "plugin-error")
    assert broken.message == "NoShouting: ZeroDivisionError: on purpose"


@pytest.mark.parametrize(
    ("plug_in", "message"),
    [
        ({"type": "tests.tasks.scan.test_filters"}, r"scan\.filters\.0: .* cannot be imported"),
        ({"type": "no.such.module:X"}, r"scan\.filters\.0: 'no\.such\.module:X' cannot be imported"),
        ({"type": f"{__name__}:NoSuch"}, "cannot be imported"),
        ({"type": f"{__name__}:NoShouting"}, r"cannot be made of its options \(KeyError: 'most'\)"),
    ],
)
def test_a_filter_that_cannot_be_made_stops_the_step(plug_in: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_filters(ScanConfig.model_validate({"filters": [plug_in]}).filters)


def test_plug_ins_know_the_facts() -> None:
    seen: list[Facts] = []

    class Looks:
        def __init__(self, options: dict[str, Any]) -> None: ...

        def reason(self, sample: RawSample, facts: Facts) -> str:
            seen.append(facts)
            return ""

    globals()["Looks"] = Looks
    look(
        pair("An apple on the table", licence="PD"), "pairs", language=True, filters=[PlugIn(type=f"{__name__}:Looks")]
    )
    assert (seen[0].kind, seen[0].source, seen[0].licence, seen[0].language) == ("pairs", "s", "PD", "en")
    assert (seen[0].images[0].width, seen[0].images[0].height) == (20, 20)
