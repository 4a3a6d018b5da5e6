"""Trains the text tokenizer: SentencePiece BPE with byte fallback, digits one by one, white space kept."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

from infra.errors import RecipeError, SourceError
from model.text_tokenizer.backends import SPACE, SentencePieceBackend
from model.text_tokenizer.codec import TextTokenizer
from model.text_tokenizer.config import TextTokenizerConfig
from model.vocabulary import Vocabulary

_TOO_FEW = re.compile(r"required_chars\. (\d+) vs (\d+)")
_BREAKS = ("\n", " ")


def train(texts: Iterable[str], config: TextTokenizerConfig, vocabulary: Vocabulary) -> TextTokenizer:
    """Trains on the texts in the order given; equal texts give an equal model, byte for byte.

    The model has ``vocabulary.text_pieces`` pieces, or fewer where the texts hold no more merges: ids stay where they
    are and the last ones go unused. RecipeError if the vocabulary has no room for the texts' characters,
    SourceError if there is no text at all.
    """
    import sentencepiece

    sink = io.BytesIO()
    sentences = (s for text in texts for s in cut(text, config.max_sentence_bytes))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=sink,
            model_type="bpe",
            vocab_size=vocabulary.text_pieces,
            hard_vocab_limit=False,
            character_coverage=config.character_coverage,
            required_chars=SPACE,  # a space spelt in bytes would be U+2581
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=config.max_sentence_bytes,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,  # the model's bytes depend on it; texts are spread over processes instead
            minloglevel=2,
        )
    except RuntimeError as e:
        found = _TOO_FEW.search(str(e))
        if found:
            raise RecipeError(
                f"vocabulary.size leaves {found[1]} text pieces; the bytes and the texts' characters at "
                f"text_tokenizer.character_coverage {config.character_coverage} need {found[2]}. "
                "Lower the coverage (rarer characters become bytes) or raise vocabulary.size."
            ) from e
        if "sentences_.empty()" in str(e):
            raise SourceError("the sources hold no text to train the text tokenizer on; check their kinds") from e
        raise
    return TextTokenizer(SentencePieceBackend(sink.getvalue(), vocabulary))


def cut(text: str, max_bytes: int) -> Iterator[str]:
    """The text in pieces of at most ``max_bytes`` UTF-8 bytes, cut after a line or a space where there is one.

    SentencePiece passes over longer sentences in silence, and over NUL; its sign for a space must not reach it at all,
    or the pieces it learns would confuse the two. Nor must the name of an image code, or a piece may be spelt like it;
    other controls' names have signs and letters, which it does not join.
    """
    for stretch in re.split(f"[\0{SPACE}\ud800-\udfff]|(?<=IMGIMG)(?=[A-J]+Z)", text):
        while stretch:
            if len(stretch) * 4 <= max_bytes or len(stretch.encode()) <= max_bytes:
                yield stretch
                break
            head = stretch[:max_bytes].encode()[:max_bytes].decode("utf-8", "ignore")
            end = next((at for b in _BREAKS if (at := head.rfind(b) + 1) > len(head) // 2), len(head))
            yield stretch[:end]
            stretch = stretch[end:]
