"""An imported ``tokenizer.json`` as the backend of a text tokenizer: BPE with the file's own pre-tokenizer.

Its layout must be the vocabulary's. What it matches in text before splitting (``added_tokens``) is left out, so that
``<racm3:break>`` in a text is text, and its truncation and padding are, so that no text is cut. Each piece's bytes
follow from the spelling that the file declares: GPT-2's letters for bytes (``ByteLevel``), or ``<0xE2>`` for the bytes
of what is no piece (``byte_fallback``).
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from infra.errors import StoreError
from model.text_tokenizer.backends import SPACE, require_room
from model.vocabulary import EOS, UNK, Vocabulary

_DECODERS = {"ByteLevel", "ByteFallback", "Fuse", "Replace", "Metaspace", "Strip", "Sequence"}
"""Decoders that leave a piece's bytes a matter of its spelling."""
_LOSSLESS = {"Sequence", "ByteLevel", "Digits"}
"""Normalizers and pre-tokenizers that lose no text, whatever their settings."""
_KEEPING = {"Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext"}
"""What splitting may do with what it splits at; ``Removed`` loses it."""


class BpeJsonBackend:
    """A BPE tokenizer in the format of the ``tokenizers`` library."""

    kind = "tokenizers"
    file = "text.tokenizer.json"

    def __init__(self, data: bytes, vocabulary: Vocabulary, where: str = "text tokenizer") -> None:
        """StoreError if the data is no such file, has another layout, or could give text a control id or none."""
        self.data, self.vocabulary, self._where = data, vocabulary, where
        try:
            self._read(data, vocabulary, where)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
            raise StoreError(
                f"{where}: not a tokenizer.json of the tokenizers library ({type(e).__name__}: {e})"
            ) from e

    def _read(self, data: bytes, vocabulary: Vocabulary, where: str) -> None:
        content = _parsed(data, where)
        model: dict[str, Any] = content["model"]
        ids: dict[str, int] = model["vocab"]
        added = [(str(t["content"]), operator.index(t["id"])) for t in content.get("added_tokens") or []]
        found = _one_to_one([*ids.items(), *added], where)
        _require_layout(found, vocabulary, where)
        self.names: Mapping[int, str] = {n: name for n, name in found.items() if n < vocabulary.text_start}
        start = vocabulary.text_start
        require_room(max(found) + 1 - start, vocabulary, where)
        sections = [s for key in ("normalizer", "pre_tokenizer") for s in _flat(content.get(key))]
        self._byte_level = any(s["type"] == "ByteLevel" for s in sections)
        self._space = _space_sign(content)
        _require_total(model, self._byte_level, vocabulary, where)
        self.changes = tuple(_changes(content, self._space))
        """What of a text is lost by the file's rules, in words; there may be more that only a try shows."""
        # By the pieces alone: no text leads to what only added_tokens has, nor to the unused ids of our own export.
        self._spellings = {n - start: name for name, n in ids.items() if n >= start and name != vocabulary.name(n)}
        self.piece_bytes = [self._bytes_of(self._spellings.get(n, "")) for n in range(max(found) + 1 - start)]
        bare: dict[str, Any] = {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
        self._tokenizer = library_tokenizer(json.dumps({**content, **bare}, ensure_ascii=False), where)

    def encode(self, text: str) -> list[int]:
        """Vocabulary ids of a text without surrogates; StoreError if the file's rules cannot be applied to it."""
        try:
            ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except BaseException as e:
            if not _of_library(e):
                raise
            raise StoreError(f"{self._where}: its rules cannot be applied to the text {text!r:.80} ({e})") from e
        # What the file says was checked; this holds whatever the library makes of it.
        if ids and not self.vocabulary.text_start <= min(ids) <= max(ids) < self.vocabulary.size:
            wrong = min(ids) if min(ids) < self.vocabulary.text_start else max(ids)
            raise StoreError(
                f"{self._where}: the text {text!r:.80} becomes id {wrong}; text has ids "
                f"{self.vocabulary.text_start} to {self.vocabulary.size - 1}. It cannot be the text tokenizer."
            )
        return ids

    def spelling(self, number: int) -> str:
        data = self.piece_bytes[number]
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in data)

    def _bytes_of(self, piece: str) -> bytes:
        if self._byte_level:
            # A letter that stands for no byte can only be in a piece that no text leads to.
            return bytes(_LETTERS[c] for c in piece) if _LETTERS.keys() >= set(piece) else b""
        if piece in _BYTES:
            return bytes([_BYTES[piece]])
        return (piece.replace(self._space, " ") if self._space else piece).encode()


def _byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level piece stands for (Radford et al., 2019, GPT-2).

    Bytes that Latin-1 can show stand for themselves, the others for the letters from U+0100 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


_LETTERS = _byte_letters()
_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
"""The byte that each piece of this spelling stands for, where the pieces are not byte-level."""


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(data)
    model = content["model"]
    kind, vocab = model.get("type", "BPE"), model["vocab"]
    faults = [
        f"model.{key} is {model[key]!r}, expected none"
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        if model.get(key)
    ]
    if kind != "BPE" or not isinstance(vocab, dict) or not vocab:
        raise StoreError(f"{where}: its model is of type {kind}; expected BPE with a vocabulary")
    unknown = {s["type"] for s in _flat(content.get("decoder"))} - _DECODERS
    faults += [f"decoder {name} is not known here" for name in sorted(unknown)]
    if model.get("ignore_merges"):
        faults.append("model.ignore_merges is true, by which the name of a control id in a text becomes that id")
    if faults:
        raise StoreError(f"{where}: cannot be the text tokenizer: " + "; ".join(faults))
    return content


def _one_to_one(entries: Iterable[tuple[str, int]], where: str) -> dict[int, str]:
    """The name of each id; StoreError if one name or id stands for two, since text could take the wrong one's place."""
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    for name, number in entries:
        if names.setdefault(number, name) != name:
            raise StoreError(f"{where}: id {number} is both {names[number]!r} and {name!r}; an id must have one name")
        if ids.setdefault(name, number) != number:
            raise StoreError(f"{where}: {name!r} is both id {ids[name]} and id {number}; a name must have one id")
    return names


def _changes(content: Mapping[str, Any], space: str) -> Iterator[str]:
    """Rules that lose some text or other, which a few probes might miss."""
    if space not in ("", SPACE):
        yield f"{space!r}, which the file writes for a space"
    for part in _flat(content.get("normalizer")):
        kind, pattern = part["type"], part.get("pattern")
        of_spaces = kind == "Prepend" or (kind == "Replace" and pattern == {"String": " "})
        if kind not in _LOSSLESS and not of_spaces:  # what is done to spaces, the probes show
            yield f"what its normalizer {kind} changes"
    for part in _flat(content.get("pre_tokenizer")):
        kind = part["type"]
        keeps = kind in ("Split", "Punctuation") and part.get("behavior", "Isolated") in _KEEPING
        of_spaces = kind == "Metaspace" and part.get("replacement", SPACE) == SPACE
        if kind not in _LOSSLESS and not keeps and not of_spaces:
            yield f"what its pre_tokenizer {kind} takes out"


def _flat(section: Any) -> Iterator[dict[str, Any]]:
    """A normalizer's, pre-tokenizer's or decoder's parts, whether it is one or a sequence of them."""
    if not isinstance(section, dict):
        return
    yield section
    for key in ("normalizers", "pretokenizers", "decoders"):
        for part in section.get(key) or []:
            yield from _flat(part)


def _space_sign(content: Mapping[str, Any]) -> str:
    """The character that stands for a space in the pieces; empty where a space is spelt as itself."""
    for part in _flat(content.get("decoder")):
        if part["type"] == "Metaspace":
            return str(part.get("replacement", SPACE))
        if part["type"] == "Replace" and part.get("content") == " ":
            return str(part["pattern"].get("String", ""))
    return ""


def _require_layout(names: Mapping[int, str], vocabulary: Vocabulary, where: str) -> None:
    """StoreError at the first id below ``text_start`` whose name says that the file has another layout."""
    needed = [n for n in range(vocabulary.boi + 1) if n != UNK]  # what <unk> is called does not matter
    for token in needed:
        if names.get(token) != vocabulary.name(token):
            given = repr(names[token]) if token in names else "nothing"
            raise StoreError(
                f"{where}: id {token} is {given}; this recipe's vocabulary has {vocabulary.name(token)!r} there "
                f"({EOS + 2} controls, {vocabulary.image_codes} image codes, <eoss>, <racm3:break>, reserved ids, text "
                f"from {vocabulary.text_start}). Set vocabulary.image_codes, text_start and size to the file's."
            )
    if max(names) >= vocabulary.size or max(names) < vocabulary.text_start:
        raise StoreError(
            f"{where}: its ids go up to {max(names)}; with vocabulary.text_start {vocabulary.text_start} and "
            f"vocabulary.size {vocabulary.size} the last must lie between. Set both to the file's."
        )


def _require_total(model: Mapping[str, Any], byte_level: bool, vocabulary: Vocabulary, where: str) -> None:
    """StoreError unless every text has ids, and all of them are text's."""
    vocab: Mapping[str, int] = model["vocab"]
    start = vocabulary.text_start
    letters = _LETTERS if byte_level else _BYTES
    if not byte_level and not model.get("byte_fallback"):
        raise StoreError(
            f"{where}: neither byte-level nor with byte_fallback, so that rare characters become <unk>; the text "
            "tokenizer must keep every character"
        )
    lacking = [letter for letter in letters if vocab.get(letter, -1) < start]
    if lacking:
        raise StoreError(
            f"{where}: {len(lacking)} of the 256 bytes have no id from {start} on, {lacking[0]!r} for one; "
            "text that holds them would be lost"
        )
    for name, number in vocab.items():
        if len(name) == 1 and number < start:  # a character is looked up without any merge
            raise StoreError(f"{where}: the character {name!r} is id {number}, which is no text")
    of_bytes = set() if byte_level else set(_BYTES)  # what is merged of these, or into one, is spelt like other text
    for merge in model.get("merges") or []:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        made = left + right
        number = vocab.get(made, start)
        if number < start or not of_bytes.isdisjoint((left, right, made)) or made == vocabulary.name(number):
            what = f"id {number}, which is no text" if number < start else f"{made!r}, which stands for other text"
            raise StoreError(f"{where}: the merge of {left!r} and {right!r} leads to {what}")


def library_tokenizer(content: str, where: str) -> Any:
    """The file as the ``tokenizers`` library reads it; StoreError if it does not."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content)
    except BaseException as e:
        if not _of_library(e):
            raise
        raise StoreError(f"{where}: the tokenizers library cannot read it ({e})") from e


def _of_library(error: BaseException) -> bool:
    """Whether ``tokenizers`` raised it: bare Exception for nearly all, and Rust's panics, which are no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
