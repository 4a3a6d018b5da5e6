"""A text tokenizer from somebody else's file: ``tokenizer.json`` or a SentencePiece ``.model``, checked before use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from infra.errors import StoreError
from model.text_tokenizer.backends import SentencePieceBackend
from model.text_tokenizer.bpe_json import BpeJsonBackend
from model.text_tokenizer.codec import Backend, TextTokenizer
from model.text_tokenizer.convert import image_placeholder, require_equal
from model.text_tokenizer.probes import PROBES
from model.vocabulary import UNK, Vocabulary

_WORDS_AT_ONCE = 500


def import_tokenizer(data: bytes, where: str, vocabulary: Vocabulary, *, lossy: bool = False) -> TextTokenizer:
    """The file's tokenizer as the text tokenizer of this vocabulary.

    Args:
        data: The file: ``tokenizers`` BPE where ``where`` ends in ``.json``, SentencePiece BPE where in ``.model``.
        where: Its name, for messages.
        vocabulary: Must be the file's own layout; a SentencePiece model's pieces are laid from ``text_start`` on.
        lossy: Accept a ``.json`` that alters text, such as one that normalises it.

    Raises:
        StoreError: Another format or layout, a text that could become a control id or none at all, a lossy tokenizer
            that was not accepted as one, one to whose ids its export would not lead.
    """
    backend: Backend
    if where.endswith(".json"):
        backend = BpeJsonBackend(data, vocabulary, where)
        _require_names(backend, where)
    elif where.endswith(".model"):
        backend = SentencePieceBackend(data, vocabulary, where)
        _require_plain_bpe(data, where)
        lossy = False  # its normalisation could not be handed on to transformers
    else:
        raise StoreError(f"{where}: expected a tokenizer.json or a SentencePiece .model, by the file's ending")
    tokenizer = TextTokenizer(backend, lossy=lossy, where=where)
    require_equal(tokenizer, [*PROBES.values(), *_own_words(tokenizer)], where)
    return tokenizer


def _own_words(tokenizer: TextTokenizer) -> Iterator[str]:
    """Texts in which every name and piece occurs, whether text leads to it or not."""
    start, size = tokenizer.vocabulary.text_start, tokenizer.vocabulary.size
    words = [tokenizer.piece(n) for n in (*range(4), *range(start - 1, size))]
    for at in range(0, len(words), _WORDS_AT_ONCE):
        yield "\n".join(words[at : at + _WORDS_AT_ONCE])
        yield "".join(words[at : at + _WORDS_AT_ONCE])


def _require_names(backend: BpeJsonBackend, where: str) -> None:
    """StoreError if an id without a name is among those that ``transformers`` asks for: it would make up another."""
    vocabulary = backend.vocabulary
    for token in (UNK, vocabulary.eot, image_placeholder(vocabulary)):
        if token not in backend.names:
            raise StoreError(
                f"{where}: id {token} has no name, and transformers would give its place to another id; name it "
                f"{vocabulary.name(token)!r} in the vocabulary and among the added_tokens"
            )


def _require_plain_bpe(data: bytes, where: str) -> None:
    """StoreError unless merging alone makes the ids, so that ``tokenizers`` can be told to make the same ones."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(data)
    spec = model.trainer_spec
    if spec.model_type != spec.BPE:
        name = spec.ModelType.Name(spec.model_type)
        raise StoreError(f"{where}: a SentencePiece model of type {name}; expected BPE")
    rule = model.normalizer_spec.name or "a rule of its own"
    if model.normalizer_spec.precompiled_charsmap:
        raise StoreError(
            f"{where}: it normalises text by {rule}, so that some text would not come back; expected a model "
            "trained with normalization_rule_name=identity"
        )

    def refuse(what: str, pieces: list[str]) -> None:
        if pieces:
            raise StoreError(
                f"{where}: {what}, {pieces[0]!r} for one ({len(pieces)} in all), which could not be handed on to "
                "transformers. Import its tokenizer.json, or a model without them."
            )

    def of_type(kind: int) -> list[str]:
        return [piece.piece for piece in model.pieces if piece.type == kind]

    normal = {piece.piece: piece.score for piece in model.pieces if piece.type == piece.NORMAL}
    merged = {piece: score for piece, score in normal.items() if len(piece) > 1}
    times = Counter(merged.values())
    refuse("user-defined pieces are found before any merge", of_type(model.SentencePiece.USER_DEFINED))
    refuse("unused pieces are merged and then taken apart again", of_type(model.SentencePiece.UNUSED))
    refuse("pieces of one score are merged from the left", [p for p, s in merged.items() if times[s] > 1])
    refuse("pieces hold characters that are no pieces", [p for p in merged if not normal.keys() >= set(p)])
