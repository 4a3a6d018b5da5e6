from __future__ import annotations

import contextlib
import json
import pickle
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from infra.errors import StoreError
from infra.storage import Storage
from model.text_tokenizer.codec import TextTokenizer
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.convert import hf_tokenizer_files
from model.text_tokenizer.importing import import_tokenizer
from model.text_tokenizer.train import train
from model.vocabulary import Vocabulary
from tests.model.text_tokenizer.standins import CORPUS, SMALL, byte_fallback, byte_level, special

WHERE = "released/tokenizer.json"
FILES = {"byte level": byte_level(SMALL), "byte fallback": byte_fallback()}
OURS = {name: import_tokenizer(data, WHERE, SMALL) for name, data in FILES.items()}
TEXTS = st.one_of(
    st.text(),
    st.text(alphabet=" \t\n\r\0▁abA0189_()<>sx/\u00a0\u200b\ufeff\ufffd\ufe0f", max_size=40),
    st.lists(
        st.sampled_from(["<s>", "</s>", "<unk>", "<0x41>", "<racm3:break>", "<eoss>", "IMGIMGAZ", "▁", " ", "apple"])
    ).map("".join),
)


@pytest.mark.parametrize("form", OURS)
@given(text=TEXTS)
@example(text="")
@example(text="<racm3:break>IMGIMGAZ<eoss><reserved00070>")
@example(text="▁▁ ▁ the apple, 42.")
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_as_text_ids_which_are_the_files_own(form: str, text: str) -> None:
    ours, theirs = OURS[form], _theirs(form)
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert all(SMALL.text_start <= n < SMALL.size for n in ids)
    assert ids == list(theirs.encode(text, add_special_tokens=False).ids)


@cache
def _theirs(form: str) -> Any:
    tokenizer = Tokenizer.from_str(FILES[form].decode())
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.mark.parametrize("form", OURS)
@given(ids=st.lists(st.integers(-(10**6), 10**6) | st.integers(0, SMALL.size - 1)))
@settings(max_examples=100, deadline=None)
def test_decoding_is_total(form: str, ids: list[int]) -> None:
    OURS[form].decode(ids).encode()


def test_a_file_of_chameleons_own_size() -> None:
    vocabulary = Vocabulary()
    tokenizer = import_tokenizer(byte_level(vocabulary), WHERE, vocabulary)
    text = "What is this <racm3:break> IMGIMGAZ, 2024? 赤リンゴ\r\n"
    ids = tokenizer.encode(text)
    assert tokenizer.pieces == 49152
    assert min(ids) >= 16384
    assert tokenizer.decode(ids) == text
    assert tokenizer.piece(8197) == "<racm3:break>"
    assert tokenizer.decode([4, 8196, 8197, 8710, 65536, -1]) == ""
    punctuation = [tokenizer.piece(n) for n in tokenizer.encode("apple, (42)")]
    assert punctuation[-6:] == [",", " ", "(", "4", "2", ")"]


@pytest.mark.parametrize("form", OURS)
def test_stored_loaded_pickled_and_exported(form: str, tmp_path: Path) -> None:
    ours, store = OURS[form], Storage(tmp_path)
    for name, data in ours.files().items():
        store.put(name, data)
    for copy in (TextTokenizer.load(store), pickle.loads(pickle.dumps(ours))):
        assert copy.encode(CORPUS[0]) == ours.encode(CORPUS[0])
        assert copy.files() == ours.files()
    assert hf_tokenizer_files(ours)["tokenizer.json"] == FILES[form]


def test_transformers_gives_the_same_ids_with_the_exported_files(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    def not_special(content: dict[str, Any]) -> None:
        for token in content["added_tokens"]:
            token["special"] = False

    ours = import_tokenizer(byte_level(SMALL, not_special), WHERE, SMALL)
    for name, data in hf_tokenizer_files(ours).items():
        (tmp_path / name).write_bytes(data)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*CORPUS[:3], "<racm3:break>IMGIMGAZ ▁ <reserved00070>  x"):
        ids = loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == ours.encode(text)
    assert loaded.convert_tokens_to_ids(loaded.boi_token) == SMALL.boi
    assert loaded.sep_token_id == SMALL.eot


def test_truncation_and_padding_of_the_file_cut_no_text() -> None:
    def cutting(content: dict[str, Any]) -> None:
        content["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}

    ours = import_tokenizer(byte_level(SMALL, cutting), WHERE, SMALL)
    assert ours.encode(CORPUS[0]) == OURS["byte level"].encode(CORPUS[0])


def set_model(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update(values)


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab[new] = vocab.pop(old)
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != old]

    return change


def _merge_to_control(content: dict[str, Any]) -> None:
    content["model"]["merges"].append(["<", "s>"])
    content["model"]["vocab"]["s>"] = content["model"]["vocab"].pop("unused1079")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("<racm3:break>", "<boi>"), r"id 69 is '<boi>'; this recipe's vocabulary has '<racm3:break>' there"),
        (rename("IMGIMGAZ", "<image>"), r"id 4 is '<image>'.*Set vocabulary.image_codes"),
        (rename("<s>", "<pad>"), r"'<pad>' is both id 0 and id 1; a name must have one id"),
        (set_model(type="WordPiece"), r"its model is of type WordPiece; expected BPE"),
        (set_model(dropout=0.1), r"model.dropout is 0.1, expected none"),
        (set_model(end_of_word_suffix="</w>"), r"model.end_of_word_suffix is '</w>'"),
        (set_model(ignore_merges=True), r"ignore_merges is true, by which the name of a control id"),
        (lambda c: c.update(decoder={"type": "WordPiece"}), r"decoder WordPiece is not known here"),
        (rename("a", "unusual"), r"1 of the 256 bytes have no id from 80 on, 'a' for one"),
        (_merge_to_control, r"the merge of '<' and 's>' leads to id 0, which is no text"),
        (lambda c: c["model"]["merges"].append(["a", "nowhere"]), r"the tokenizers library cannot read it"),
        (lambda c: c["added_tokens"].append(special(1080, "<more>")), r"its ids go up to 1080.*vocabulary.size 1080"),
    ],
)
def test_what_cannot_be_the_text_tokenizer_is_refused_by_name(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(StoreError, match=f"(?s)^{WHERE}: .*(?:{message})"):
        import_tokenizer(byte_level(SMALL, change), WHERE, SMALL)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff\xfe", b'{"model": null}', b'{"model": {"vocab": {}}}'])
def test_what_is_no_tokenizer_json_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match=WHERE):
        import_tokenizer(data, WHERE, SMALL)


PLACES = [
    (),
    *[(key,) for key in ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder", "truncation", "version")],
    *[("model", key) for key in ("vocab", "merges", "unk_token", "byte_fallback", "fuse_unk", "ignore_merges")],
    *[("model", "vocab", name) for name in ("a", "<s>", "IMGIMGAZ", "unused1079")],
    *[("model", "merges", n) for n in (0, 5)],
    *[("added_tokens", 3), ("added_tokens", 3, "id"), ("added_tokens", 3, "content"), ("added_tokens", 3, "special")],
    *[("pre_tokenizer", "pretokenizers"), ("pre_tokenizer", "pretokenizers", 0), ("decoder", "type")],
]
JUNK = [None, True, -1, 7, 2**40, 1.5, "", "x", "a b", [], [1], ["a", "b", "c"], {}, {"type": "x"}, {"type": "NFKC"}]


@given(place=st.sampled_from(PLACES), junk=st.sampled_from(JUNK))
@settings(max_examples=250, deadline=None)
def test_a_damaged_file_is_refused_or_works(place: tuple[Any, ...], junk: Any) -> None:
    content: Any = json.loads(FILES["byte level"])
    inside = content
    for key in place[:-1]:
        inside = inside[key]
    if place:
        inside[place[-1]] = junk
    else:
        content = junk
    with contextlib.suppress(StoreError):
        tokenizer = import_tokenizer(json.dumps(content).encode(), WHERE, SMALL)
        assert tokenizer.decode(tokenizer.encode("a <s> IMGIMGAZ apple")) == "a <s> IMGIMGAZ apple"
        hf_tokenizer_files(tokenizer)


def test_another_layout_says_which_keys_to_set() -> None:
    other = Vocabulary(image_codes=32, text_start=80, size=1080)
    with pytest.raises(StoreError, match=r"id 36 is 'IMGIMGDCZ'.*has '<eoss>' there.*Set vocabulary.image_codes"):
        import_tokenizer(FILES["byte level"], WHERE, other)


def test_characters_without_ids_are_refused() -> None:
    with pytest.raises(StoreError, match="neither byte-level nor with byte_fallback"):
        import_tokenizer(byte_fallback(set_model(byte_fallback=False)), WHERE, SMALL)


def _lower(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}


def _metaspace(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {(k.replace(" ", "▁") if v >= 80 else k): v for k, v in vocab.items()}
    content["model"]["merges"] = [[p.replace(" ", "▁") for p in pair] for pair in content["model"]["merges"]]
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, *content["decoder"]["decoders"]],
    }


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (byte_level(SMALL, _lower), "composed and decomposed letters; compatibility forms; upper and lower case"),
        (byte_fallback(_metaspace), "runs of spaces; .*; U\\+2581, which some tokenizers write for a space"),
    ],
)
def test_a_file_that_alters_text_is_refused_unless_that_is_accepted(data: bytes, kinds: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"does not give back.*{kinds}.*text_tokenizer.lossy: true"):
        import_tokenizer(data, WHERE, SMALL)
    tokenizer = import_tokenizer(data, WHERE, SMALL, lossy=True)
    assert re.search(kinds, "; ".join(tokenizer.alters))
    assert " apple" in tokenizer.decode(tokenizer.encode("an APPLE apple"))
    store = Storage(tmp_path)
    for name, content in tokenizer.files().items():
        store.put(name, content)
    assert TextTokenizer.load(store).alters == tokenizer.alters


def test_a_sentencepiece_model_is_imported_and_one_of_another_type_is_not() -> None:
    import io

    import sentencepiece

    ours = train(CORPUS, TextTokenizerConfig(), SMALL)
    assert import_tokenizer(ours.backend.data, "a/b.model", SMALL).encode("an apple") == ours.encode("an apple")
    sink = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=sink, vocab_size=320, byte_fallback=True, minloglevel=2
    )
    with pytest.raises(StoreError, match=r"a/b.model: a SentencePiece model of type UNIGRAM; expected BPE"):
        import_tokenizer(sink.getvalue(), "a/b.model", SMALL)
    with pytest.raises(StoreError, match="not a SentencePiece model"):
        import_tokenizer(b"\xff\xff", "a/b.model", SMALL)
    with pytest.raises(StoreError, match=r"a/b.txt: expected a tokenizer.json or a SentencePiece .model"):
        import_tokenizer(b"", "a/b.txt", SMALL)
