"""SentencePiece as the backend of a text tokenizer: the kind that Calumma trains.

A backend turns text into ids by one file's rules and knows each piece's bytes. Piece n is id ``text_start + n``. The
other one, in ``bpe_json.py``, has the same attributes and methods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infra.errors import StoreError
from model.vocabulary import Vocabulary

SPACE = "\u2581"
"""SentencePiece's sign for a space, inside its pieces. In text it is a character like any other."""

KNOWN_WORDS = 2**17
"""Words whose ids are kept; when there are more, it begins anew."""
KNOWN_CHARS, KNOWN_IDS = 64, 16
"""Longer words, and those of more ids, are seldom met twice: so no text makes the words kept take much memory."""
_WORDS = re.compile(" *[^ ]+| +")
_ACROSS = re.compile(f"[^{SPACE}]{SPACE}")


class SentencePieceBackend:
    """A serialised SentencePiece model with byte fallback."""

    kind = "sentencepiece"
    """What the description of a stored tokenizer calls it."""
    file = "text.model"
    """The name of its file in a step's folder."""

    def __init__(self, data: bytes, vocabulary: Vocabulary, where: str = "text tokenizer") -> None:
        """StoreError if the data is no such model, has no byte pieces, or more pieces than the vocabulary has room."""
        import sentencepiece  # here: reading a recipe needs no SentencePiece

        self.data, self.vocabulary = data, vocabulary
        self.names: Mapping[int, str] = {}
        """The file's own names of ids below ``text_start``: here it has none."""
        self.changes: tuple[str, ...] = ()
        """What of a text is lost by the file's rules, in words; here only a try shows that."""
        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=data)
        except (RuntimeError, ValueError) as e:
            raise StoreError(f"{where}: not a SentencePiece model ({e})") from e
        count = int(self._processor.get_piece_size())
        require_room(count, vocabulary, where)
        self.piece_bytes = [self._bytes_of(n) for n in range(count)]
        """What each piece stands for in UTF-8; nothing for pieces that no text leads to."""
        byte_ids = {self.piece_bytes[n]: n for n in range(count) if self._processor.is_byte(n)}
        missing = [b for b in range(256) if bytes([b]) not in byte_ids]
        if missing:
            raise StoreError(f"{where}: the model lacks {len(missing)} byte pieces; train it with byte fallback")
        # Where no piece goes on from another character to a space, no merge does: words can be looked up one by one.
        self._by_words = not any(_ACROSS.search(piece) for piece, _, is_byte in self.raw_pieces() if not is_byte)
        self._known: dict[str, list[int]] = {}
        # Each id once, however many words have it.
        self._ids = [*range(vocabulary.text_start, vocabulary.text_start + count)]
        self._escaped_space = [byte_ids[bytes([b])] + vocabulary.text_start for b in SPACE.encode()]

    def encode(self, text: str) -> list[int]:
        """Vocabulary ids of a text without surrogates, all above ``text_start``, which is SentencePiece's <unk>."""
        if not self._by_words:
            return self._merged(text)
        ids: list[int] = []
        for word in _WORDS.findall(text):
            known = self._known.get(word)
            ids += self._learnt(word) if known is None else known
        return ids

    def _learnt(self, word: str) -> list[int]:
        ids = self._merged(word)
        if len(word) <= KNOWN_CHARS and len(ids) <= KNOWN_IDS:
            if len(self._known) >= KNOWN_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids

    def _merged(self, text: str) -> list[int]:
        known, encode = self._ids, self._processor.encode
        # SentencePiece cannot tell U+2581 from a space: it is written as its three bytes instead.
        first, *rest = text.split(SPACE)
        ids = [known[n] for n in encode(first)]
        for stretch in rest:
            ids += self._escaped_space
            ids += [known[n] for n in encode(stretch)]
        return ids

    def spelling(self, number: int) -> str:
        """Piece ``number`` as one can read it, ``<0xE2>`` for a byte."""
        return str(self._processor.id_to_piece(number)).replace(SPACE, " ")

    def raw_pieces(self) -> list[tuple[str, float, bool]]:
        """Every piece in order: SentencePiece's own spelling (U+2581 for a space), its score, whether it is a byte."""
        p = self._processor
        return [(p.id_to_piece(n), p.get_score(n), p.is_byte(n)) for n in range(len(self.piece_bytes))]

    def _bytes_of(self, number: int) -> bytes:
        p = self._processor
        piece = str(p.id_to_piece(number))
        if p.is_byte(number):
            return bytes([int(piece[3:5], 16)])
        if p.is_control(number) or p.is_unknown(number) or p.is_unused(number):
            return b""
        return piece.replace(SPACE, " ").encode()


def require_room(pieces: int, vocabulary: Vocabulary, where: str) -> None:
    """StoreError if a model of so many pieces does not fit the vocabulary."""
    if pieces > vocabulary.text_pieces:
        raise StoreError(
            f"{where}: the model has {pieces} pieces and the vocabulary room for {vocabulary.text_pieces}; "
            "raise vocabulary.size or take a smaller model"
        )
