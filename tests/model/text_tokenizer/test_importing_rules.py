"""What a file's own rules may do to text: ids that are no text's, text that is lost, ids that the export has not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.errors import StoreError
from model.text_tokenizer.backends import SPACE
from model.text_tokenizer.bpe_json import BpeJsonBackend
from model.text_tokenizer.convert import hf_tokenizer_files
from model.text_tokenizer.importing import import_tokenizer
from tests.model.text_tokenizer.standins import CORPUS, SMALL, byte_fallback, byte_level, special

WHERE = "released/tokenizer.json"


def set_model_entry(name: str, number: int) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"]["vocab"].update({name: number})


def _swap(name: str, *, drop: str = "") -> Callable[[dict[str, Any]], None]:
    """A reserved id of no fixed name, or ``drop``'s, is called ``name``."""

    def change(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        old = drop or next(n for n, number in vocab.items() if number == 75)
        vocab.pop(name, None)
        vocab[name] = vocab.pop(old)
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != old]

    return change


def _nameless(number: int) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        content["model"] |= {"vocab": {name: n for name, n in vocab.items() if n != number}, "unk_token": None}
        content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] != number]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_swap("ж"), "the character 'ж' is id 75, which is no text"),
        (_swap("ж", drop="<unk>"), "the character 'ж' is id 3, which is no text"),
        (set_model_entry("ж", 4), "id 4 is both '.*' and '.*'; an id must have one name"),
        (set_model_entry("apple pie", 300), "id 300 is both"),
        (lambda c: c["added_tokens"].append(special(1079, "<s>")), "id 1079 is both .* and '<s>'|'<s>' is both id"),
        (lambda c: c["added_tokens"].append(special(5, "<more>")), "id 5 is both 'IMGIMGBZ' and '<more>'"),
        (lambda c: c["model"]["merges"].append(["<0x4", "2>"]), "'<0x42>', which stands for other text"),
        (lambda c: c["model"]["merges"].append(["<0xD0>", "<0xB6>"]), "'<0xD0><0xB6>', which stands for other text"),
        *[(_nameless(n), f"id {n} has no name, and transformers would") for n in (3, SMALL.eot, 71)],
    ],
)
def test_no_file_gives_text_a_control_or_image_id_or_another_texts_id(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(StoreError, match=f"^{WHERE}: .*(?:{message})"):
        import_tokenizer(byte_fallback(change), WHERE, SMALL)


def test_a_wrong_id_is_refused_when_text_is_encoded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = import_tokenizer(byte_fallback(), WHERE, SMALL)
    assert isinstance(ours.backend, BpeJsonBackend)
    for wrong in (4, SMALL.size):
        giving = SimpleNamespace(encode=lambda *_, wrong=wrong, **__: SimpleNamespace(ids=[500, wrong]))
        monkeypatch.setattr(ours.backend, "_tokenizer", giving)
        with pytest.raises(StoreError, match=f"the text 'an apple' becomes id {wrong}; text has ids 80 to 1079"):
            ours.encode("an apple")


def test_hostile_files_are_refused_by_name() -> None:
    deep = b'{"model": ' + b"[" * 100_000
    with pytest.raises(StoreError, match=rf"^{WHERE}: not a tokenizer.json.*RecursionError"):
        import_tokenizer(deep, WHERE, SMALL)

    def nested(content: dict[str, Any]) -> None:
        for _ in range(300):
            content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [content["pre_tokenizer"]]}

    with pytest.raises(StoreError, match=rf"^{WHERE}: .*cannot read it"):
        import_tokenizer(byte_fallback(nested), WHERE, SMALL)

    def backtracking(content: dict[str, Any]) -> None:
        pattern = {"Regex": r"^(([0-9a-z ])+.)+[A-Z]([0-9a-z ])+$"}
        content["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}

    with pytest.raises(StoreError, match=rf"^{WHERE}: its rules cannot be applied to the text 'aaa"):
        import_tokenizer(byte_fallback(backtracking), WHERE, SMALL).encode("a" * 3000)


def test_an_added_token_of_text_and_a_byte_order_mark_change_no_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    def add(content: dict[str, Any]) -> None:
        content["added_tokens"].append(special(1079, "unused1079", special=False))
        content["added_tokens"].append(special(1078, "unused1078"))

    ours = import_tokenizer(b"\xef\xbb\xbf" + byte_level(SMALL, add), WHERE, SMALL)
    for name, data in hf_tokenizer_files(ours).items():
        (tmp_path / name).write_bytes(data)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("an unused1079 apple", "unused1078unused1079"):
        assert loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ours.encode(text)
    utf16 = import_tokenizer(byte_level(SMALL).decode().encode("utf-16"), WHERE, SMALL)
    assert json.loads(hf_tokenizer_files(utf16)["tokenizer.json"].decode()) == json.loads(byte_level(SMALL))


def test_a_file_that_only_transformers_would_not_read_is_refused() -> None:
    def broken(content: dict[str, Any]) -> None:
        content["post_processor"] = {"type": "Nowhere"}

    with pytest.raises(StoreError, match=rf"^{WHERE}: the tokenizers library cannot read it"):
        import_tokenizer(byte_level(SMALL, broken), WHERE, SMALL)


def section(key: str, content: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    def change(whole: dict[str, Any]) -> None:
        whole[key] = {"type": "Sequence", f"{key.removesuffix('r').replace('_', '')}rs": [content]}

    return change


def _of_words(kind: str, pattern: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "pattern": {"String": pattern}, **more}


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (section("normalizer", _of_words("Replace", "secret", content="public")), "what its normalizer Replace chang"),
        (section("normalizer", {"type": "NFC"}), "what its normalizer NFC changes"),
        (
            section("pre_tokenizer", _of_words("Split", "secret", behavior="Removed", invert=False)),
            "what its pre_tokenizer Split takes out",
        ),
        (section("pre_tokenizer", {"type": "Punctuation", "behavior": "Removed"}), "what its pre_tokenizer Punctuatio"),
        (section("pre_tokenizer", {"type": "CharDelimiterSplit", "delimiter": "ж"}), "CharDelimiterSplit takes out"),
        (section("decoder", _of_words("Replace", "ж", content=" ")), "'ж', which the file writes for a space"),
    ],
)
def test_what_no_probe_shows_is_told_by_the_files_rules(change: Callable[[dict[str, Any]], None], kinds: str) -> None:
    data = byte_fallback(change)
    with pytest.raises(StoreError, match=rf"does not give back.*{kinds}.*text_tokenizer.lossy: true"):
        import_tokenizer(data, WHERE, SMALL)
    assert re.search(kinds, "; ".join(import_tokenizer(data, WHERE, SMALL, lossy=True).alters))


@pytest.mark.parametrize(
    "rules",
    [
        _of_words("Split", "a", behavior="Isolated", invert=False),
        _of_words("Split", "a", behavior="MergedWithNext", invert=True),
        {"type": "Digits", "individual_digits": False},
    ],
)
def test_rules_that_lose_nothing_are_no_loss(rules: dict[str, Any]) -> None:
    assert import_tokenizer(byte_fallback(section("pre_tokenizer", rules)), WHERE, SMALL).alters == ()


def _sentencepiece(*, sentences: list[str] = CORPUS, **options: Any) -> bytes:
    import io

    import sentencepiece

    sink = io.BytesIO()
    settings: dict[str, Any] = {
        "sentence_iterator": iter(sentences),
        "model_writer": sink,
        "vocab_size": 600,
        "hard_vocab_limit": False,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(**settings | options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "options",
    [{}, {"control_symbols": ["<pad>", "IMGIMGAZ", "the"]}, {"unk_id": 3, "bos_id": 1, "eos_id": 2, "pad_id": 0}],
)
def test_a_sentencepiece_model_with_controls_of_its_own_is_exported_with_the_same_ids(
    options: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    ours = import_tokenizer(_sentencepiece(**options), "a/b.model", SMALL)
    for name, data in hf_tokenizer_files(ours).items():
        (tmp_path / name).write_bytes(data)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    vocab = loaded.get_vocab()
    assert [vocab[name] for name in ("<s>", "</s>", "<pad>", "IMGIMGAZ")] == [0, 2, 1, 4]
    assert sorted(vocab.values()) == list(range(SMALL.size))
    for text in (*CORPUS[:3], "<s> the IMGIMGAZ</s> <pad>"):
        assert loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ours.encode(text)
    assert loaded("a")["input_ids"][0] == 0
    every = range(SMALL.text_start, SMALL.text_start + 10)
    assert loaded.decode([*every]) == ours.decode([*every])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"user_defined_symbols": ["appl"]},
            "user-defined pieces are found before any merge, 'appl' for one .1 in all.",
        ),
        ({"normalization_rule_name": "nfkc"}, "it normalises text by nfkc"),
        (
            {
                **{"split_by_unicode_script": False, "sentences": ["x<s>y<s>z"] * 50, "required_chars": SPACE},
                **{"bos_id": -1, "eos_id": -1},
            },
            "the piece '<s>' .id .* is spelt like the name of another id",
        ),
    ],
)
def test_a_sentencepiece_model_that_cannot_be_handed_on_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=f"^a/b.model: .*{message}"):
        import_tokenizer(_sentencepiece(**options), "a/b.model", SMALL)


def _altered(change: Callable[[Any], None]) -> bytes:
    """A model changed after training; ``change`` gets its pieces of more than one letter, best first."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(_sentencepiece())
    change([p for p in model.pieces if p.type == p.NORMAL and len(p.piece) > 1])
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pieces: setattr(pieces[5], "type", pieces[5].UNUSED), "unused pieces are merged and then taken apart"),
        (lambda pieces: setattr(pieces[5], "score", pieces[3].score), "pieces of one score are merged from the left"),
        (lambda pieces: setattr(pieces[5], "piece", "жÿ"), "pieces hold characters that are no pieces, 'жÿ' for one"),
    ],
)
def test_a_sentencepiece_model_that_pairs_cannot_tell_of_is_refused(
    change: Callable[[Any], None], message: str
) -> None:
    with pytest.raises(StoreError, match=f"^a/b.model: {message}"):
        import_tokenizer(_altered(change), "a/b.model", SMALL)


def test_a_model_of_a_custom_normalisation_is_refused(tmp_path: Path) -> None:
    rule = tmp_path / "rule.tsv"
    rule.write_text("73 65 63 72 65 74\t70 75 62 6C 69 63\n")  # secret -> public
    with pytest.raises(StoreError, match="^a/b.model: it normalises text"):
        import_tokenizer(_sentencepiece(normalization_rule_tsv=str(rule)), "a/b.model", SMALL)
