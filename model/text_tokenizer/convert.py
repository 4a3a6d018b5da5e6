"""The text tokenizer as ``transformers`` reads it: a ``tokenizers`` BPE that gives the same ids for every text.

An imported ``tokenizer.json`` is given back as it came, all its added tokens marked special. For SentencePiece's models
one is made. SentencePiece merges any two neighbours whose joined text is a piece, the best piece first;
``tokenizers`` merges by a list of pairs. So every way to split a piece into two pieces becomes a merge, in the order of
the pieces' scores. A space is spelt as itself in the pieces, so that U+2581 in a text stays a character like any other,
as it is for us.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from infra.errors import StoreError
from model.text_tokenizer.backends import SPACE, SentencePieceBackend
from model.text_tokenizer.bpe_json import BpeJsonBackend, library_tokenizer
from model.text_tokenizer.codec import TextTokenizer
from model.vocabulary import BOS, EOS, PAD, UNK, Vocabulary

IMAGE_PLACEHOLDER = "<image>"
"""What ``transformers``' processor writes where a picture's codes will stand."""
_UNUSED = re.compile(r"text\[[0-9]+\]")
"""The vocabulary's names of text ids that have no piece."""


def hf_tokenizer_files(tokenizer: TextTokenizer, *, split_special_tokens: bool = False) -> dict[str, bytes]:
    """``tokenizer.json`` and ``tokenizer_config.json``, by name.

    ``split_special_tokens=True`` makes ``transformers`` treat ``<racm3:break>`` and its like in a text as text, as
    Calumma always does; its processor for pictures relies on the opposite.
    """
    backend = tokenizer.backend
    content = _tokenizer_json(tokenizer, "text tokenizer")
    config = hf_tokenizer_config(tokenizer.vocabulary, backend.names, split_special_tokens=split_special_tokens)
    return {"tokenizer.json": content, "tokenizer_config.json": _json(config)}


def require_equal(tokenizer: TextTokenizer, texts: Iterable[str], where: str) -> None:
    """StoreError unless ``tokenizers`` reads the exported file and gives the same ids for each of the texts."""
    theirs = library_tokenizer(_tokenizer_json(tokenizer, where).decode(), where)
    theirs.encode_special_tokens = True  # what ``split_special_tokens`` sets
    theirs.no_truncation()
    theirs.no_padding()
    for text in texts:
        if list(theirs.encode(text, add_special_tokens=False).ids) != tokenizer.encode(text):
            raise StoreError(
                f"{where}: transformers would give other ids for the text {text!r:.80} than are trained on; this file "
                "cannot be handed on to it. Import another one."
            )


def _tokenizer_json(tokenizer: TextTokenizer, where: str) -> bytes:
    backend = tokenizer.backend
    return _given_back(backend) if isinstance(backend, BpeJsonBackend) else _json(to_hf_tokenizer_json(backend, where))


def _given_back(backend: BpeJsonBackend) -> bytes:
    """The imported file, byte for byte, unless an added token is not marked special or it is not plain UTF-8.

    ``split_special_tokens`` would not reach such a token, and its name in a text would become its id. A byte order mark
    or UTF-16 is what ``tokenizers`` does not read.
    """
    content = json.loads(backend.data)
    plain = [t for t in content.get("added_tokens") or [] if t.get("special") is not True]
    for token in plain:
        token["special"] = True
    return _json(content) if plain or json.detect_encoding(backend.data) != "utf-8" else backend.data


def to_hf_tokenizer_json(backend: SentencePieceBackend, where: str = "text tokenizer") -> dict[str, Any]:
    """The content of ``tokenizer.json``: all ids of the vocabulary, those below ``text_start`` as special tokens.

    ``encode(text, add_special_tokens=False)`` gives what :meth:`TextTokenizer.encode` gives, and otherwise ``<s>``
    before it. Ids that no text leads to (controls of the model, unused ones) are ``text[n]``, and decode to nothing.
    StoreError if a piece is spelt like another id's name: there would be one name for two ids.
    """
    vocabulary = backend.vocabulary
    names = [hf_token(vocabulary, n) for n in range(vocabulary.text_start)]
    ids = {name: n for n, name in enumerate(names)}
    spellings = {vocabulary.text_start + number: spelling for number, spelling in _spellings(backend)}
    for token in range(vocabulary.text_start, vocabulary.size):
        name = spellings.get(token) or vocabulary.name(token)
        if ids.setdefault(name, token) != token or (token in spellings and _UNUSED.fullmatch(name)):
            raise StoreError(
                f"{where}: the piece {name!r} (id {token}) is spelt like the name of another id; transformers "
                "could not tell them apart. Take a model without it."
            )
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = names[BOS]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": name, **special} for n, name in enumerate(names)],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": bos, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"Regex": rf"\A{_UNUSED.pattern}\z"}, "content": ""},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": names[UNK],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": dict(sorted(ids.items(), key=lambda entry: entry[1])),
            "merges": list(merges(backend)),
        },
    }


def hf_tokenizer_config(
    vocabulary: Vocabulary, names: Mapping[int, str] | None = None, *, split_special_tokens: bool = False
) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``; the attributes are those that Chameleon's processor asks for.

    ``names`` are an imported file's own, by id.
    """

    def name(token: int) -> str:
        return (names or {}).get(token) or hf_token(vocabulary, token)

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name(BOS),
        "eos_token": name(EOS),
        "pad_token": name(PAD),
        "unk_token": name(UNK),
        "sep_token": name(vocabulary.eot),
        "image_token": name(image_placeholder(vocabulary)),
        "boi_token": name(vocabulary.boi),
        "eoi_token": name(vocabulary.eoi),
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": split_special_tokens,
        "model_max_length": 1_000_000_000,
    }


def image_placeholder(vocabulary: Vocabulary) -> int:
    """The reserved id that ``transformers`` shows as ``<image>``: 8711 in Chameleon's layout, else the first free."""
    if vocabulary.image_codes == 8192 and vocabulary.text_start == 16384 and vocabulary.eot != 8711:
        return 8711
    return vocabulary.first_reserved + (vocabulary.eot == vocabulary.first_reserved)


def hf_token(vocabulary: Vocabulary, token: int) -> str:
    """The name of an id below ``text_start`` in ``transformers``: the released one, and ``<image>``."""
    return IMAGE_PLACEHOLDER if token == image_placeholder(vocabulary) else vocabulary.name(token)


def merges(backend: SentencePieceBackend) -> Iterator[tuple[str, str]]:
    """Every split of a piece into two pieces, the best piece first."""
    raw = backend.raw_pieces()
    scores = {spelling: raw[number][1] for number, spelling in _spellings(backend, with_bytes=False)}
    ranked = sorted((-scores[p], n, p) for n, p in _spellings(backend, with_bytes=False) if len(p) > 1)
    for _, _, piece in ranked:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                yield left, right


def _spellings(backend: SentencePieceBackend, *, with_bytes: bool = True) -> Iterator[tuple[int, str]]:
    """Number and spelling of every piece that text can lead to."""
    for number, (piece, _, is_byte) in enumerate(backend.raw_pieces()):
        if backend.piece_bytes[number] and (with_bytes or not is_byte):
            yield number, piece if is_byte else piece.replace(SPACE, " ")


def _json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()
