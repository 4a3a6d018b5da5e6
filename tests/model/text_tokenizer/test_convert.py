from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.text_tokenizer.codec import TextTokenizer
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.convert import hf_tokenizer_files, image_placeholder
from model.text_tokenizer.train import train
from model.vocabulary import Vocabulary

VOCABULARY = Vocabulary(image_codes=64, text_start=80, size=1080)
CORPUS = [
    "the red apple and the green apple are on the table; 赤リンゴ manzana roja красное яблоко\n\n",
    "def f(x):\n        if x > 10:\n            return 'aaaa aaaaaa bbbb'\n   pass  # 2024----========\n\n\n",
    "abababab  abab     ba   -- --- ----- aaa <s> <0x41> hahaha\n",
] * 20


def hf_json(tokenizer: TextTokenizer) -> str:
    return hf_tokenizer_files(tokenizer)["tokenizer.json"].decode()


OURS = train(CORPUS, TextTokenizerConfig(), VOCABULARY)
THEIRS = Tokenizer.from_str(hf_json(OURS))
THEIRS.encode_special_tokens = True  # `<racm3:break>` in a text is text, as it is for us


def their_ids(text: str) -> list[int]:
    return list(THEIRS.encode(text, add_special_tokens=False).ids)


TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=" \n\t▁ab-=x1<>s", max_size=60),
    st.lists(st.sampled_from(["  ", "    ", " ", "ab", "a", "aa", "----", "-", "\n", "the ", "apple", " x"])).map(
        "".join
    ),
)


@given(TEXTS)
@example("<racm3:break> IMGIMGAZ <s> <0x41> <image>")
@example(" " * 37 + "x" + " " * 5)
@settings(max_examples=800, deadline=None)
def test_the_ids_are_ours_for_every_text(text: str) -> None:
    assert their_ids(text) == OURS.encode(text)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_decoding_gives_the_text_back(text: str) -> None:
    assert THEIRS.decode(OURS.encode(text), skip_special_tokens=False) == text


def test_real_texts_get_the_same_ids(shared_data: Path) -> None:
    lines = (shared_data / "text" / "multilingual_debian_handbook.jsonl").read_text("utf-8").splitlines()[:12]
    lines += (shared_data / "code" / "python.jsonl").read_text("utf-8").splitlines()[:12]
    texts = [json.loads(line)["text"][:20_000] for line in lines]
    ours = train(
        texts, TextTokenizerConfig(character_coverage=0.995), Vocabulary(image_codes=64, text_start=80, size=4096)
    )
    theirs = Tokenizer.from_str(hf_json(ours))
    for text in texts:
        assert list(theirs.encode(text, add_special_tokens=False).ids) == ours.encode(text)


def test_every_id_has_one_name() -> None:
    vocab = THEIRS.get_vocab()
    assert sorted(vocab.values()) == list(range(VOCABULARY.size))
    assert vocab["<racm3:break>"] == VOCABULARY.boi
    assert vocab["<eoss>"] == VOCABULARY.eoi
    assert vocab["IMGIMGAZ"] == 4
    assert vocab["<image>"] == image_placeholder(VOCABULARY) != VOCABULARY.eot
    assert image_placeholder(Vocabulary()) == 8711


def test_transformers_loads_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, data in hf_tokenizer_files(OURS).items():
        (tmp_path / name).write_bytes(data)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "the red  apple\n        return ▁x"
    assert loaded(text, add_special_tokens=False)["input_ids"] == OURS.encode(text)
    assert loaded(text)["input_ids"] == [0, *OURS.encode(text)]
    assert loaded.decode(OURS.encode(text)) == text
    assert loaded("<racm3:break>", add_special_tokens=False)["input_ids"] == [VOCABULARY.boi]
    assert (loaded.bos_token_id, loaded.pad_token_id, loaded.eos_token_id, loaded.sep_token_id) == (
        0,
        1,
        2,
        VOCABULARY.eot,
    )
    assert (loaded.image_token, loaded.boi_token, loaded.eoi_token) == ("<image>", "<racm3:break>", "<eoss>")
    assert len(loaded) == VOCABULARY.size


@pytest.mark.parametrize("texts", [["hello"], ["▁▁▁ \x00", "x"]])
def test_a_model_with_unused_ids_converts_too(texts: list[str]) -> None:
    ours = train(texts, TextTokenizerConfig(), VOCABULARY)
    theirs = Tokenizer.from_str(hf_json(ours))
    assert isinstance(ours, TextTokenizer)
    assert theirs.get_vocab_size() == VOCABULARY.size
    assert list(theirs.encode("hello, wörld ▁ x", add_special_tokens=False).ids) == ours.encode("hello, wörld ▁ x")
