"""Stand-ins for the released ``tokenizer.json``, which is not available: its layout and habits, other pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.convert import hf_tokenizer_files
from model.text_tokenizer.train import train
from model.vocabulary import Vocabulary

SMALL = Vocabulary(image_codes=64, text_start=80, size=1080)
CORPUS = [
    "the red apple and the green apple are on the table; 赤リンゴ manzana roja красное яблоко\n",
    "def f(x):\n        if x > 10:\n            return 'an apple'\n\tpass  # 2024\r\n",
    "<racm3:break> IMGIMGAZ <s> </s> <unk> <pad> <0x41> <reserved08706> are words in a caption   \n",
] * 20


def special(token: int, name: str, **changed: Any) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": name, **flags, **changed}


@cache
def _byte_level_parts(pieces: int) -> tuple[dict[str, int], tuple[tuple[str, str], ...], str]:
    """Pieces and merges of a byte-level BPE with punctuation isolated and digits one by one, and its other sections."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation(behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=pieces, initial_alphabet=alphabet, show_progress=False)
    )
    content = json.loads(tokenizer.to_str())
    merges = tuple((left, right) for left, right in content["model"]["merges"])
    return content["model"]["vocab"], merges, json.dumps(content)


def byte_level(vocabulary: Vocabulary, change: Callable[[dict[str, Any]], None] = lambda content: None) -> bytes:
    """Chameleon's form: all ids named, those below ``text_start`` added tokens, the last text ids without a merge."""
    pieces, merges, whole = _byte_level_parts(600)
    content = json.loads(whole)
    names = {vocabulary.name(n): n for n in range(vocabulary.text_start)}
    names |= {piece: vocabulary.text_start + n for piece, n in pieces.items()}
    names |= {f"unused{n}": n for n in range(vocabulary.text_start + len(pieces), vocabulary.size)}
    content["model"] |= {"vocab": names, "merges": [list(m) for m in merges], "unk_token": "<unk>"}
    content["added_tokens"] = [special(n, vocabulary.name(n)) for n in range(vocabulary.text_start)]
    change(content)
    return json.dumps(content, ensure_ascii=False).encode()


@cache
def _byte_fallback() -> str:
    ours = train(CORPUS, TextTokenizerConfig(), SMALL)
    return hf_tokenizer_files(ours)["tokenizer.json"].decode()


def byte_fallback(change: Callable[[dict[str, Any]], None] = lambda content: None) -> bytes:
    """SMALL's layout with pieces in Unicode, bytes for what is none, and a pre-tokenizer of its own."""
    content = json.loads(_byte_fallback())
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Punctuation", "behavior": "Isolated"},
            {"type": "Digits", "individual_digits": True},
        ],
    }
    change(content)
    return json.dumps(content, ensure_ascii=False).encode()
