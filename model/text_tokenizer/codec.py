"""Text to ids of the shared vocabulary and back, without loss and without any way to a control or image id.

A SentencePiece BPE model with byte fallback holds the pieces; piece n is id ``text_start + n``. Its pieces are all that
text can become, so ``<racm3:break>`` or ``IMGIMGAZ`` in a caption stays text. Decoding is done here, byte by byte,
because it must be total: a model may sample any sequence of ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from infra.errors import StoreError
from infra.storage import Storage
from model.vocabulary import Vocabulary

MODEL = "text.model"
DESCRIPTION = "text.json"
FORMAT = "calumma-text-tokenizer"
VERSION = 1

SPACE = "\u2581"
"""SentencePiece's sign for a space, inside its pieces. In text it is a character like any other."""
REPLACEMENT = "\ufffd"

_SURROGATES = re.compile("[\ud800-\udfff]")


class TextTokenizer:
    """``decode(encode(s)) == s`` for every string of Unicode scalar values."""

    def __init__(self, model: bytes, vocabulary: Vocabulary, where: str = "text tokenizer") -> None:
        """Wraps a serialised SentencePiece model; StoreError if it is none, is too large, or alters text."""
        import sentencepiece  # here: reading a recipe needs no SentencePiece

        self.vocabulary = vocabulary
        self.model = model
        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as e:
            raise StoreError(f"{where}: not a SentencePiece model ({e})") from e
        self.pieces = int(self._processor.get_piece_size())
        """Pieces of the model; ids from ``text_start + pieces`` on are unused."""
        if self.pieces > vocabulary.text_pieces:
            raise StoreError(
                f"{where}: the model has {self.pieces} pieces and the vocabulary room for {vocabulary.text_pieces}"
            )
        self._bytes = [_bytes_of(self._processor, n) for n in range(self.pieces)]
        byte_ids = {self._bytes[n]: n for n in range(self.pieces) if self._processor.is_byte(n)}
        missing = [b for b in range(256) if bytes([b]) not in byte_ids]
        if missing:
            raise StoreError(f"{where}: the model lacks {len(missing)} byte pieces; train it with byte fallback")
        self._escaped_space = [byte_ids[bytes([b])] + vocabulary.text_start for b in SPACE.encode()]
        probe = "  a \n\tb ①  "  # a model that adds, trims or normalises would change it
        if self.decode(self.encode(probe)) != probe:
            raise StoreError(
                f"{where}: the model changes white space or normalises text; train it with identity normalisation, "
                "no dummy prefix and extra white space kept"
            )

    @classmethod
    def load(cls, store: Storage) -> TextTokenizer:
        """The tokenizer in a step's folder: ``text.model``, and ``text.json`` with its vocabulary."""
        where = store.url(DESCRIPTION)
        try:
            facts = json.loads(store.get(DESCRIPTION))
            name, version = facts["format"], int(facts["version"])
            vocabulary = Vocabulary.model_validate(facts["vocabulary"]) if version <= VERSION else None
        except (ValueError, KeyError, TypeError) as e:
            raise StoreError(f"{where}: not the description of a text tokenizer ({e})") from e
        if name != FORMAT or vocabulary is None:
            raise StoreError(f"{where}: format {name} version {version}; expected {FORMAT} up to version {VERSION}")
        return cls(store.get(MODEL), vocabulary, store.url(MODEL))

    def files(self) -> dict[str, bytes]:
        """What :meth:`load` reads, by file name."""
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "pieces": self.pieces,
            "vocabulary": self.vocabulary.model_dump(),
        }
        return {DESCRIPTION: (json.dumps(facts, sort_keys=True, indent=1) + "\n").encode(), MODEL: self.model}

    def encode(self, text: str) -> list[int]:
        """Vocabulary ids, all at least ``text_start``. Half a surrogate pair, which is no character, becomes U+FFFD."""
        if not text.isascii():
            text = _SURROGATES.sub(REPLACEMENT, text)
        start = self.vocabulary.text_start
        # SentencePiece cannot tell U+2581 from a space: it is written as its three bytes instead.
        first, *rest = text.split(SPACE)
        ids = [n + start for n in self._processor.encode(first)]
        for stretch in rest:
            ids += self._escaped_space
            ids += [n + start for n in self._processor.encode(stretch)]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids: those of controls and pictures are dropped, bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of any ids; they may end inside a character, as a text in the making does."""
        start, stop = self.vocabulary.text_start, self.vocabulary.text_start + self.pieces
        return b"".join([self._bytes[n - start] for n in ids if start <= n < stop])

    def piece(self, token: int) -> str:
        """A readable form of one id: the piece's text, ``<0xE2>`` for a byte, the released name of any other id."""
        number = token - self.vocabulary.text_start
        if not 0 <= number < self.pieces:
            return self.vocabulary.name(token)
        return str(self._processor.id_to_piece(number)).replace(SPACE, " ")

    def raw_pieces(self) -> list[tuple[str, float, bool]]:
        """Every piece in order: SentencePiece's own spelling (U+2581 for a space), its score, whether it is a byte."""
        p = self._processor
        return [(p.id_to_piece(n), p.get_score(n), p.is_byte(n)) for n in range(self.pieces)]

    def __reduce__(self) -> tuple[Any, ...]:
        return TextTokenizer, (self.model, self.vocabulary)


def _bytes_of(processor: Any, number: int) -> bytes:
    """What a piece stands for in UTF-8; nothing for SentencePiece's own controls."""
    piece = str(processor.id_to_piece(number))
    if processor.is_byte(number):
        return bytes([int(piece[3:5], 16)])
    if processor.is_control(number) or processor.is_unknown(number) or processor.is_unused(number):
        return b""
    return piece.replace(SPACE, " ").encode()
