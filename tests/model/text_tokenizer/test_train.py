from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import RecipeError, SourceError
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.train import cut, train
from model.vocabulary import Vocabulary

SMALL = Vocabulary(image_codes=64, text_start=80, size=1080)


def test_equal_texts_give_an_equal_model() -> None:
    texts = ["one two three 123\n", "four  five ▁ six\0seven", "七 八 九"] * 9
    first, second = (train(t, TextTokenizerConfig(), SMALL).backend.data for t in (texts, iter(texts)))
    assert first == second


def test_little_text_leaves_ids_unused_and_the_vocabulary_as_it_is() -> None:
    tokenizer = train(["hello"], TextTokenizerConfig(), SMALL)
    assert tokenizer.pieces < SMALL.text_pieces
    assert tokenizer.vocabulary.size == 1080
    assert tokenizer.decode(tokenizer.encode("hello, wörld")) == "hello, wörld"


def test_no_room_for_the_characters_names_the_keys_to_change() -> None:
    texts = ["".join(map(chr, range(0x4E00 + n, 0x4E00 + n + 100))) for n in range(0, 1000, 100)]
    with pytest.raises(RecipeError, match=r"leaves 1000 text pieces.*need 125[78].*coverage.*vocabulary.size"):
        train(texts, TextTokenizerConfig(character_coverage=1), SMALL)


@pytest.mark.parametrize("texts", [[], [""], ["\0\0"]])
def test_no_text_at_all_is_an_error_of_the_sources(texts: list[str]) -> None:
    with pytest.raises(SourceError, match="no text"):
        train(texts, TextTokenizerConfig(), SMALL)


@given(st.text(alphabet="ab \n▁\0é赤\U0001f34e", max_size=300), st.integers(64, 90))
@settings(max_examples=200)
def test_cutting_loses_only_what_sentencepiece_must_not_see(text: str, size: int) -> None:
    pieces = list(cut(text, size))
    assert "".join(pieces) == text.replace("▁", "").replace("\0", "")
    assert all(0 < len(p.encode()) <= size for p in pieces)


def test_cuts_fall_after_lines_and_spaces() -> None:
    assert list(cut("x" * 50 + "\n" + "y" * 40, 64)) == ["x" * 50 + "\n", "y" * 40]
    assert list(cut("x" * 50 + " " + "y" * 40, 64)) == ["x" * 50 + " ", "y" * 40]
