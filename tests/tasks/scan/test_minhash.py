from __future__ import annotations

import random

import pytest

from tasks.scan.minhash import BANDS, NearText
from tasks.scan.words import ngrams, word_hashes, words
from tasks.sources.base import RawImage, Segment
from tests.tasks.scan.test_examine import document, look, pair, png

WORDS = [f"word{n}" for n in range(4000)]


def prose(seed: int, count: int = 300) -> list[str]:
    return random.Random(seed).choices(WORDS, k=count)


def shared(a: list[str], b: list[str]) -> bool:
    near = NearText()
    return bool(set(near.bands([" ".join(a)])) & set(near.bands([" ".join(b)])))


def test_nearly_equal_texts_share_a_band_and_others_do_not() -> None:
    near, far = 0, 0
    for seed in range(30):
        text = prose(seed)
        edited = [*text[:100], "other", *text[101:]]  # 5 of 296 n-grams: similarity 0.97
        near += shared(text, edited)
        far += shared(text, [*text[:100], *prose(seed + 1000, 200)])  # similarity 0.2
    assert near == 30
    assert far == 0


def test_bands_are_the_same_in_every_process_and_for_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    text = [" ".join(prose(1, 5000))]
    bands = NearText().bands(text)
    assert len(set(bands)) == BANDS
    assert all(0 <= band < 2**64 for band in bands)
    monkeypatch.setattr("tasks.scan.minhash._BLOCK", 17)
    assert NearText().bands(text) == bands
    assert NearText().bands(["one two three four five"])[:2] == (6811797719332920930, 7407647901396138152)


def test_case_punctuation_and_white_space_do_not_count() -> None:
    near = NearText()
    assert near.bands(["One, two\nthree - FOUR five."]) == near.bands(["one two", "three four five"])
    assert near.bands(["only four words here"]) == ()


def test_words_are_unified_and_scripts_without_spaces_cut() -> None:
    assert words("Ｆｕｌｌ ﬁne don't x_y Straße") == ["full", "fine", "don", "t", "x", "y", "strasse"]
    assert words("我们 go สวย") == ["我", "们", "go", "ส", "ว", "ย"]


def test_ngrams_are_of_every_place_and_order_counts() -> None:
    hashes = word_hashes(["a", "b", "c", "d"])
    assert len(ngrams(hashes, 2)) == 3
    assert len(ngrams(hashes, 5)) == 0
    assert ngrams(hashes, 2)[1] == ngrams(word_hashes(["b", "c"]), 2)[0] != ngrams(word_hashes(["c", "b"]), 2)[0]


def test_only_texts_and_documents_have_bands() -> None:
    text = "five words are quite enough"
    assert look(document(Segment(text)), "text").near == ()
    assert len(look(document(Segment(text)), "text", near_duplicates=True).near) == BANDS
    shown = document(Segment(text), Segment(image=0), images=(RawImage("a", png()),))
    assert len(look(shown, "interleaved", near_duplicates=True).near) == BANDS
    assert look(pair(text), "pairs", near_duplicates=True).near == ()
