from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.errors import SourceError
from tasks.documents.captions import caption_number, image_first
from tasks.sources import open_source
from tasks.sources.base import RawSample, Source, sample_id
from tasks.sources.config import SourceConfig
from tasks.sources.emoji import with_english
from tasks.sources.emoji_data import LANGUAGES, clean_name, emoji_table, split_at_emoji
from tasks.sources.emoji_instructions import CATEGORIES, REFUSAL

KINDS = {
    "emoji-pairs": "pairs",
    "emoji-quality": "pairs",
    "emoji-documents": "interleaved",
    "emoji-instructions": "messages",
}


def source(kind: str, **options: Any) -> Source:
    return open_source(SourceConfig(name="s", type=kind, kind=KINDS[kind], options=options), Path())


def samples(found: Source, target: int = 500) -> list[RawSample]:
    return [s for item in found.work_items(target) for s in found.read(item) if isinstance(s, RawSample)]


def test_every_drawing_has_a_name_in_english_and_no_two_have_the_same() -> None:
    table = emoji_table()
    assert 1850 < len(table) < 1990
    assert max(Counter(e.name for e in table).values()) == 1
    assert all(e.name and "_" not in e.name and ":" not in e.name.removeprefix("flag: ") for e in table)
    assert sum(len(e.names) == len(LANGUAGES) for e in table) > 1800


def test_skin_tones_only_when_asked_for() -> None:
    assert len(emoji_table(skin_tones=True)) > len(emoji_table()) + 1900
    assert not any("1f3fd" in e.code for e in emoji_table())


def test_names_are_clean() -> None:
    assert clean_name(":red_apple:") == "red apple"
    by_code = {e.code: e for e in emoji_table()}
    assert by_code["1f34e"].name == "red apple"
    assert by_code["1f34e"].names["es"] == "manzana roja"
    assert by_code["1f1eb-1f1f7"].name == "flag: France"
    assert by_code["1f1eb-1f1f7"].names["fr"] == "drapeau france"
    assert (by_code["1f34e"].group, by_code["1f34e"].subgroup) == ("Food & Drink", "food-fruit")
    assert by_code["33-20e3"].group == "Symbols"


def test_texts_are_split_at_whole_emoji() -> None:
    pieces = list(split_at_emoji("a 👨‍💻 b❤️"))
    assert [p if isinstance(p, str) else p.name for p in pieces] == ["a ", "man technologist", " b", "red heart"]
    assert list(split_at_emoji("© plain ™")) == ["© plain ™"]


def test_english_names_come_first_and_as_often_as_asked_for() -> None:
    assert with_english("e", ["a", "b", "c"], 2) == ("e", "a", "e", "b", "e", "c")
    assert with_english("e", ["a", "b", "c"], 3) == ("e", "a", "b", "e", "c")
    assert with_english("e", ["a", "b", "c"], 2, 2) == ("e", "e", "a", "e", "e", "b", "e", "e", "c")
    assert with_english("e", ["a", "b"], 1) == ("e",)
    assert with_english("e", ["a", "b"], 0) == ("e", "a", "b")
    apple = next(s for s in samples(source("emoji-pairs")) if s.key == "1f34e.png")
    assert apple.captions[0] == "red apple"
    assert apple.captions.count("red apple") == len(apple.captions) * 2 / 3 == 2 * (len(LANGUAGES) - 1)


def test_english_names_stand_on_both_sides_of_every_picture() -> None:
    """Order turns round at every use and captions take turns: neither may fix the other."""
    for sample in list(samples(source("emoji-pairs")))[:200]:
        name, n = sample_id("emoji", sample.key), len(sample.captions)
        uses = [(image_first(name, k, 0), sample.captions[caption_number(name, k, 0, n)]) for k in range(6)]
        assert {first for first, caption in uses if caption == sample.captions[0]} == {True, False}, sample.key


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_whole_distinct_and_the_same_every_time(kind: str) -> None:
    found = samples(source(kind))
    assert len({s.key for s in found}) == len(found) > 1000
    assert all(i.data is not None for s in found for i in s.images)
    for s in found:
        assert sorted(g.image for g in s.segments if g.image is not None) == (
            list(range(len(s.images))) if KINDS[kind] != "pairs" else []
        )
    again = samples(source(kind), target=333)
    assert [s.key for s in again] == [s.key for s in found]
    assert again[7] == found[7]
    assert source(kind).digest() == source(kind).digest()


def test_the_pictures_are_pictures() -> None:
    sample = samples(source("emoji-quality", groups=["Food & Drink"]))[0]
    assert sample.images[0].data is not None
    assert Image.open(io.BytesIO(sample.images[0].data)).size == (72, 72)


def test_quality_pairs_are_english_only_and_of_the_wanted_groups() -> None:
    found = samples(source("emoji-quality", groups=["Food & Drink"]))
    assert 100 < len(found) < 200
    assert all(len(s.captions) == 1 for s in found)
    with pytest.raises(SourceError, match="Food & Drink"):
        list(source("emoji-quality", groups=["Food"]).work_items(10))


def test_documents_show_each_emoji_before_and_after_its_name() -> None:
    found = samples(source("emoji-documents", descriptions=[], pictures=3))
    assert max(len(s.images) for s in found) == 3
    shown = Counter(i.name for s in found for i in s.images)
    assert set(shown.values()) == {2}
    assert {s.segments[0].text for s in found if "food-fruit" in s.key} >= {"Food & Drink, food fruit\n"}
    assert all((g.text or "").strip() or g.image is not None for s in found for g in s.segments if g.text != "\n")


def test_descriptions_of_packages_show_their_emoji() -> None:
    found = [s for s in samples(source("emoji-documents")) if s.key.startswith("description:")]
    assert len(found) > 10
    assert all(s.images and len(s.images) <= 3 and s.licence for s in found)
    missing = source("emoji-documents", descriptions=["no-such-package-xyz"])
    assert not [s for s in samples(missing) if s.key.startswith("description:")]


def test_instructions_cover_the_categories() -> None:
    found = samples(source("emoji-instructions"))
    by_category = {c: [s for s in found if s.category == c] for c in CATEGORIES}
    assert all(by_category.values())
    assert sum(map(len, by_category.values())) == len(found)
    for s in found:
        roles = [g.role for g in s.segments]
        assert roles == sorted(roles, reverse=True), "the user speaks, then the assistant"
        assert {"user", "assistant"} == set(roles)
    apple = next(s for s in by_category["image-generation"] if s.key == "draw:1f34e")
    assert [(g.role, g.text, g.image) for g in apple.segments] == [
        ("user", "Draw: red apple", None),
        ("assistant", None, 0),
    ]
    asked = next(s for s in by_category["visual-chat"] if s.key == "what:1f34e")
    assert [(g.role, g.text, g.image) for g in asked.segments] == [
        ("user", None, 0),
        ("user", "What is this?", None),
        ("assistant", "red apple", None),
    ]
    assert all(s.segments[-1].text == REFUSAL for s in by_category["safety"])
    assert all("def " in (s.segments[-1].text or "") for s in by_category["code"])


def test_only_conversations_about_names_show_no_picture() -> None:
    """What names an emoji and shows none may be trained on when its picture is held out: it gives away no picture."""
    for s in samples(source("emoji-instructions")):
        assert bool(s.images) == (s.category not in ("text", "code", "safety"))


def test_wrong_options_are_named() -> None:
    with pytest.raises(SourceError, match=r"unknown option 'english_evry'; did you mean 'english_every'"):
        list(source("emoji-pairs", english_evry=2).work_items(10))
    with pytest.raises(SourceError, match="no names in language xx"):
        samples(source("emoji-pairs", languages=["xx"]))
    with pytest.raises(SourceError, match="unknown category poems"):
        samples(source("emoji-instructions", categories=["poems"]))
