"""Text to ids of the shared vocabulary and back, without loss and without any way to a control or image id.

A BPE model whose pieces spell every byte turns text into pieces; piece n is id ``text_start + n``. These pieces are all
that text can become, so ``<racm3:break>`` or ``IMGIMGAZ`` in a caption stays text. Decoding is done here, byte by byte,
because it must be total: a model may sample any sequence of ids.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable
from typing import Any

from infra.errors import StoreError
from infra.storage import Storage
from model.text_tokenizer.backends import SentencePieceBackend
from model.text_tokenizer.bpe_json import BpeJsonBackend
from model.text_tokenizer.probes import altered
from model.vocabulary import Vocabulary

DESCRIPTION = "text.json"
FORMAT = "calumma-text-tokenizer"
VERSION = 2
"""1 knew no backend but SentencePiece."""
REPLACEMENT = "\ufffd"

Backend = SentencePieceBackend | BpeJsonBackend
_BACKENDS: dict[str, type[Backend]] = {cls.kind: cls for cls in (SentencePieceBackend, BpeJsonBackend)}
_SURROGATES = re.compile("[\ud800-\udfff]")


class TextTokenizer:
    """``decode(encode(s)) == s`` for every string of Unicode scalar values, unless it is lossy."""

    def __init__(self, backend: Backend, *, lossy: bool = False, where: str = "text tokenizer") -> None:
        """StoreError if the backend alters text and ``lossy`` does not say that this is accepted."""
        self.backend, self.vocabulary = backend, backend.vocabulary
        self._bytes = backend.piece_bytes
        self.alters = altered(lambda text: self.decode(self.encode(text))) + backend.changes
        """Kinds of text that do not come back as they were; none for what Calumma trains."""
        if self.alters and not lossy:
            raise StoreError(
                f"{where}: decoding does not give back what was encoded: {'; '.join(self.alters)}. Take a model that "
                "keeps white space and normalises nothing; an imported tokenizer.json can be accepted as it is with "
                "text_tokenizer.lossy: true."
            )

    @property
    def pieces(self) -> int:
        """Pieces of the model; ids from ``text_start + pieces`` on are unused."""
        return len(self._bytes)

    @classmethod
    def load(cls, store: Storage) -> TextTokenizer:
        """The tokenizer in a step's folder: the backend's file, and ``text.json`` with its vocabulary."""
        where = store.url(DESCRIPTION)
        try:
            facts = json.loads(store.get(DESCRIPTION))
            name, version = facts["format"], int(facts["version"])
            vocabulary = Vocabulary.model_validate(facts["vocabulary"]) if version <= VERSION else None
            backend = _BACKENDS[facts.get("backend", SentencePieceBackend.kind)] if version <= VERSION else None
        except (ValueError, KeyError, TypeError) as e:
            raise StoreError(f"{where}: not the description of a text tokenizer ({e})") from e
        if name != FORMAT or vocabulary is None or backend is None:
            raise StoreError(f"{where}: format {name} version {version}; expected {FORMAT} up to version {VERSION}")
        url = store.url(backend.file)
        lossy = bool(facts.get("lossy", False))
        return cls(backend(store.get(backend.file), vocabulary, url), lossy=lossy, where=url)

    def files(self) -> dict[str, bytes]:
        """What :meth:`load` reads, by file name."""
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "backend": self.backend.kind,
            "lossy": bool(self.alters),
            "pieces": self.pieces,
            "vocabulary": self.vocabulary.model_dump(),
        }
        description = (json.dumps(facts, sort_keys=True, indent=1) + "\n").encode()
        return {DESCRIPTION: description, self.backend.file: self.backend.data}

    def encode(self, text: str) -> list[int]:
        """Vocabulary ids, all at least ``text_start``. Half a surrogate pair, which is no character, becomes U+FFFD."""
        return self.backend.encode(scalar_values(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids: those of controls and pictures are dropped, bytes that are not UTF-8 become U+FFFD.

        So are integers that are no ids at all. TypeError for what is no integer.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of any ids; they may end inside a character, as a text in the making does."""
        start, stop = self.vocabulary.text_start, self.vocabulary.text_start + self.pieces
        return b"".join([self._bytes[n - start] for n in map(operator.index, ids) if start <= n < stop])

    def piece(self, token: int) -> str:
        """A readable form of one id: the piece's text, ``<0xE2>`` for a byte, the released name of any other id."""
        number = token - self.vocabulary.text_start
        return self.backend.spelling(number) if 0 <= number < self.pieces else self.vocabulary.name(token)

    def __reduce__(self) -> tuple[Any, ...]:
        backend = self.backend
        return _made, (backend.kind, backend.data, self.vocabulary, bool(self.alters))


def scalar_values(text: str) -> str:
    """The text with half surrogate pairs, which are no characters, replaced by U+FFFD."""
    return text if text.isascii() else _SURROGATES.sub(REPLACEMENT, text)


def _made(kind: str, data: bytes, vocabulary: Vocabulary, lossy: bool) -> TextTokenizer:
    return TextTokenizer(_BACKENDS[kind](data, vocabulary), lossy=lossy)
