from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.errors import StoreError
from infra.storage import Storage
from model.text_tokenizer import backends
from model.text_tokenizer.backends import SentencePieceBackend
from model.text_tokenizer.codec import DESCRIPTION, TextTokenizer
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.train import train
from model.vocabulary import Vocabulary

MODEL = SentencePieceBackend.file
VOCABULARY = Vocabulary(image_codes=64, text_start=80, size=1080)
CORPUS = [
    "the red apple and the green apple are on the table; 赤リンゴ manzana roja красное яблоко\n",
    "def f(x):\n        if x > 10:\n            return '▁ is no space'\n\tpass  # 2024\r\n",
    "<racm3:break> IMGIMGAZ <s> </s> <unk> <pad> <0x41> <reserved08706> are words in a caption   \n",
] * 20


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train(CORPUS, TextTokenizerConfig(), VOCABULARY)


TOKENIZER = train(CORPUS, TextTokenizerConfig(), VOCABULARY)
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=" \t\n\r\0▁▅abA0189_()<>sx/\u00a0\u200b\ufeff\ufffd\ufe0f", max_size=40),
    st.lists(
        st.sampled_from(["<s>", "</s>", "<pad>", "<unk>", "<0x41>", "<racm3:break>", "<eoss>", "IMGIMGAZ", "▁", " "])
    ).map("".join),
    st.binary(max_size=40).map(lambda b: b.decode("utf-8", "ignore")),
)


@given(TEXTS)
@example("")
@example("   leading and trailing   ")
@example("▁▁ ▁")
@example("a\0b\0")
@example("<racm3:break>IMGIMGAZ<eoss>")
@example("\U0010ffff\ufffe\ufeff e\u0301 é")
@settings(max_examples=600, deadline=None)
def test_every_text_comes_back_and_no_control_id_appears(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(VOCABULARY.text_start < n < VOCABULARY.size for n in ids), "text_start itself is the piece <unk>"


@given(st.lists(st.integers(-(10**6), 10**6) | st.integers(0, VOCABULARY.size - 1)))
@settings(max_examples=300, deadline=None)
def test_decoding_is_total(ids: list[int]) -> None:
    text = TOKENIZER.decode(ids)
    text.encode()
    assert text == TOKENIZER.decode([n for n in ids if VOCABULARY.text_start <= n < VOCABULARY.size])


@given(st.lists(TEXTS, min_size=2, max_size=3))
@settings(max_examples=100, deadline=None)
def test_texts_encoded_apart_join_without_loss(texts: list[str]) -> None:
    assert TOKENIZER.decode([n for t in texts for n in TOKENIZER.encode(t)]) == "".join(texts)


SCALAR_VALUES = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        " " * 1_000_000,
        "\n \t" * 30_000,
        "▁" * 30_000,
        "e" + "\u0301" * 100_000,
        "\0" * 10_000,
        "שלום \u202eabc\u202c مرحبا " * 3_000,
        "7" * 100_000,
        SCALAR_VALUES,
    ],
    ids=["letter", "spaces", "white-space", "u2581", "marks", "nul", "right-to-left", "digits", "every-scalar-value"],
)
def test_long_and_strange_texts_come_back(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert min(ids) > VOCABULARY.text_start


def test_a_control_spelt_by_joined_pieces_stays_text(tokenizer: TextTokenizer) -> None:
    ids = [n for part in ("<racm3", ":br", "eak>", "<", "/s", ">", "IMG", "IMGAZ") for n in tokenizer.encode(part)]
    assert tokenizer.decode(ids) == "<racm3:break></s>IMGIMGAZ"
    assert min(ids) > VOCABULARY.text_start
    assert min(tokenizer.encode(tokenizer.decode(ids))) > VOCABULARY.text_start


def test_ids_of_any_integer_type_decode_and_what_is_no_integer_is_refused(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("an apple")
    assert tokenizer.decode(np.array(ids, np.uint16)) == tokenizer.decode(torch.tensor(ids)) == "an apple"
    assert tokenizer.decode(iter(ids)) == "an apple"
    assert tokenizer.decode([-1, 2**70, -(2**70), *ids, VOCABULARY.size]) == "an apple"
    for wrong in ([1.5], [float(ids[0])], ["a"], [None], [[1]]):
        with pytest.raises(TypeError):
            tokenizer.decode(wrong)  # type: ignore[arg-type]


def test_ids_do_not_depend_on_words_being_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "KNOWN_WORDS", 7)
    tokenizer = train(CORPUS, TextTokenizerConfig(), VOCABULARY)
    assert isinstance(tokenizer.backend, SentencePieceBackend)
    assert tokenizer.backend._by_words
    for text in (*CORPUS[:3], "  a  b ▁ c\n\n  d   ", "x" * 200 + " y") * 2:
        ids = tokenizer.encode(text)
        tokenizer.backend._by_words = False
        assert tokenizer.encode(text) == ids
        tokenizer.backend._by_words = True
    assert len(tokenizer.backend._known) <= 7


def test_words_of_many_ids_are_not_kept() -> None:
    tokenizer = train(CORPUS, TextTokenizerConfig(), VOCABULARY)
    assert isinstance(tokenizer.backend, SentencePieceBackend)
    known = tokenizer.backend._known
    known.clear()  # of the words that were tried when it was made
    tokenizer.encode("the " + "\U0001f34e" * 60 + " apple " + "ba" * 40)
    assert known.keys() == {"the", " apple"}
    (first, *_), (again, *_) = known["the"], tokenizer.encode("the\n")
    assert first is again, "each id is kept once"


def test_a_model_whose_pieces_cross_spaces_is_merged_whole() -> None:
    import io

    import sentencepiece

    sink = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["of the of the of the"] * 50),
        model_writer=sink,
        model_type="bpe",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_by_whitespace=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    tokenizer = TextTokenizer(SentencePieceBackend(sink.getvalue(), VOCABULARY))
    assert any(" " in tokenizer.piece(n).strip() for n in tokenizer.encode("of the of the"))
    assert tokenizer.decode(tokenizer.encode("of the  of the")) == "of the  of the"


def test_half_a_surrogate_pair_becomes_the_replacement_character(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_u2581_is_not_a_space(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("a▁b") != tokenizer.encode("a b")


def test_bytes_cut_inside_a_character_become_replacements(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("\U0001f34e")
    assert len(ids) == 4
    assert tokenizer.decode(ids[:3]) == "\ufffd"
    assert tokenizer.decode_bytes(ids[:3]) == "\U0001f34e".encode()[:3]


def test_digits_are_one_by_one(tokenizer: TextTokenizer) -> None:
    assert [tokenizer.piece(n) for n in tokenizer.encode("2024")] == ["2", "0", "2", "4"]


def test_frequent_words_and_runs_of_spaces_are_pieces(tokenizer: TextTokenizer) -> None:
    assert len(tokenizer.encode("the red apple")) < 8
    assert [tokenizer.piece(n) for n in tokenizer.encode("        ")] == ["        "]


def test_controls_and_unused_ids_have_names_and_no_text(tokenizer: TextTokenizer) -> None:
    assert tokenizer.piece(VOCABULARY.boi) == "<racm3:break>"
    assert tokenizer.piece(4) == "IMGIMGAZ"
    assert tokenizer.decode([0, 1, 2, 3, 4, VOCABULARY.boi, VOCABULARY.eoi, VOCABULARY.eot]) == ""
    if tokenizer.pieces < VOCABULARY.text_pieces:
        assert tokenizer.decode([VOCABULARY.size - 1]) == ""


def test_saved_and_loaded(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    store = Storage(tmp_path)
    for name, data in tokenizer.files().items():
        store.put(name, data)
    for copy in (TextTokenizer.load(store), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.vocabulary == VOCABULARY
        assert copy.encode(CORPUS[0]) == tokenizer.encode(CORPUS[0])


def test_a_newer_or_foreign_or_damaged_file_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    store = Storage(tmp_path)
    files = tokenizer.files()
    store.put(MODEL, files[MODEL])
    facts = json.loads(files[DESCRIPTION])
    for wrong in (facts | {"version": 3}, facts | {"format": "other"}):
        store.put(DESCRIPTION, json.dumps(wrong).encode())
        with pytest.raises(StoreError, match="expected calumma-text-tokenizer up to version 2"):
            TextTokenizer.load(store)
    store.put(DESCRIPTION, b"{}")
    with pytest.raises(StoreError, match="not the description"):
        TextTokenizer.load(store)
    store.put(DESCRIPTION, files[DESCRIPTION])
    store.put(MODEL, b"no model")
    with pytest.raises(StoreError, match="not a SentencePiece model"):
        TextTokenizer.load(store)


def test_a_model_that_does_not_fit_the_vocabulary_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(StoreError, match=r"pieces and the vocabulary room for 300"):
        SentencePieceBackend(tokenizer.backend.data, Vocabulary(image_codes=64, text_start=80, size=380))


def test_a_model_that_alters_text_is_refused() -> None:
    import io

    import sentencepiece

    sink = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=sink,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(StoreError, match="does not give back what was encoded: white space at the ends"):
        TextTokenizer(SentencePieceBackend(sink.getvalue(), VOCABULARY))
