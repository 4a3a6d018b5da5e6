from __future__ import annotations

import pytest

from model.text_tokenizer.codec import TextTokenizer
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.train import train
from model.vocabulary import Vocabulary
from tasks.train import fertility
from tasks.train.fertility import HeldOut, by_language, by_source, measure, ratios


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train(
        ["a red apple, a green apple\n"] * 9, TextTokenizerConfig(), Vocabulary(image_codes=8, text_start=16, size=400)
    )


def sums(size: int, characters: int, words: int, tokens: int) -> fertility.Sums:
    return {"bytes": size, "characters": characters, "words": words, "tokens": tokens}


def test_bytes_characters_words_and_tokens_are_counted(tokenizer: TextTokenizer) -> None:
    texts = {"x": {"en": ["a red apple", "apple\n apple"], "ja": ["\u8d64 \u8d64"], "code": ["f = x"]}}
    found = measure(tokenizer, texts)["x"]
    assert list(found) == ["code", "en", "ja"]
    counted = sum(len(tokenizer.encode(t)) for t in texts["x"]["en"])
    assert found["en"] == sums(23, 23, 5, counted)
    assert found["ja"] == sums(7, 3, 0, 7), "its words are not parted by spaces, and its characters are spelt in bytes"
    assert found["code"]["words"] == 0


def test_sums_add_up_by_source_and_by_language() -> None:
    measured = {
        "web": {"en": sums(100, 100, 20, 30), "zh": sums(60, 20, 0, 25), "und": sums(500, 400, 0, 90)},
        "books": {"en": sums(50, 50, 10, 10)},
        "files": {"en": sums(900, 900, 80, 300), "code": sums(10, 10, 0, 5)},
    }
    assert by_source(measured)["web"] == sums(660, 520, 0, 145)
    found = by_language(measured, ["files"])
    assert list(found) == ["en", "zh", "und", "code"]
    assert found["en"] == sums(150, 150, 30, 40)
    assert found["code"] == sums(910, 910, 0, 305)
    assert by_language(measured, [])["en"] == sums(1050, 1050, 110, 340)
    assert list(by_language(measured, [])) == ["en", "zh", "und", "code"]


def test_ratios() -> None:
    assert ratios(sums(150, 100, 20, 50)) == {
        "tokens_per_word": 2.5,
        "tokens_per_character": 0.5,
        "bytes_per_token": 3.0,
    }
    assert ratios(sums(3, 1, 0, 1))["tokens_per_word"] is None
    assert set(ratios(sums(0, 0, 0, 0)).values()) == {None}


def test_of_each_language_of_a_source_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fertility, "GROUP_BYTES", 10)
    monkeypatch.setattr(fertility, "TEXT_CHARS", 6)
    monkeypatch.setattr(fertility, "SOURCE_TEXTS", 7)
    held_out = HeldOut(lambda text: "en" if text.isascii() else "xx")
    for text in ("abcdefgh", "abcd", "abc", " \n", "", "\xe9"):
        held_out.add("s", text)
    held_out.add("s", "print(1)", "code")
    held_out.add("t", "abc\ud800")
    assert held_out.texts == {
        "s": {"en": ["abcdef", "abcd"], "xx": ["\xe9"], "code": ["print("]},
        "t": {"xx": ["abc\ud800"]},
    }
    for _ in range(9):
        held_out.add("s", "\xe9")
    assert len(held_out.texts["s"]["xx"]) == 3, "no more texts of the source are looked at"
