"""A text tokenizer from somebody else's file: ``tokenizer.json`` or a SentencePiece ``.model``, checked before use."""

from __future__ import annotations

from infra.errors import StoreError
from model.text_tokenizer.backends import SentencePieceBackend
from model.text_tokenizer.bpe_json import BpeJsonBackend
from model.text_tokenizer.codec import Backend, TextTokenizer
from model.text_tokenizer.probes import PROBES
from model.vocabulary import Vocabulary


def import_tokenizer(data: bytes, where: str, vocabulary: Vocabulary, *, lossy: bool = False) -> TextTokenizer:
    """The file's tokenizer as the text tokenizer of this vocabulary.

    Args:
        data: The file: ``tokenizers`` BPE where ``where`` ends in ``.json``, SentencePiece BPE where in ``.model``.
        where: Its name, for messages.
        vocabulary: Must be the file's own layout; a SentencePiece model's pieces are laid from ``text_start`` on.
        lossy: Accept a ``.json`` that alters text, such as one that normalises it.

    Raises:
        StoreError: Another format or layout, a text that could become a control id or none at all, a lossy tokenizer
            that was not accepted as one.
    """
    backend: Backend
    if where.endswith(".json"):
        backend = BpeJsonBackend(data, vocabulary, where)
    elif where.endswith(".model"):
        backend = SentencePieceBackend(data, vocabulary, where)
        _require_bpe(data, where)
        lossy = False  # its normalisation could not be handed on to transformers
    else:
        raise StoreError(f"{where}: expected a tokenizer.json or a SentencePiece .model, by the file's ending")
    tokenizer = TextTokenizer(backend, lossy=lossy, where=where)
    for text in PROBES.values():
        wrong = [n for n in tokenizer.encode(text) if not vocabulary.text_start <= n < vocabulary.size]
        if wrong:
            raise StoreError(
                f"{where}: the text {text!r} becomes id {wrong[0]}; text must keep to {vocabulary.text_start} and above"
            )
    return tokenizer


def _require_bpe(data: bytes, where: str) -> None:
    from sentencepiece import sentencepiece_model_pb2

    spec = sentencepiece_model_pb2.ModelProto.FromString(data).trainer_spec
    if spec.model_type != spec.BPE:
        name = spec.ModelType.Name(spec.model_type)
        raise StoreError(f"{where}: a SentencePiece model of type {name}; expected BPE")
