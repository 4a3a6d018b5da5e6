"""Texts to measure a text tokenizer on: real ones of any amount, and strings that were made to find faults.

Real texts are the shared data's prose and code, then its other texts, then, in an order of their names' hashes, the
Python sources and documentation of the packages installed here: all different, none repeated or made up.
"""

from __future__ import annotations

import hashlib
import json
import random
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.common import SHARED_DATA

FOLDERS = ("text", "code", "interleaved", "sft", "bench")
PACKAGES_SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt"}
MAX_FILE = 400_000
"""Bytes of an installed file; larger ones are tables of data."""
LEAST_CHARS = 20
"""Shorter strings of the JSON files are names and labels."""
CONTROLS = (
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<racm3:break>",
    "<eoss>",
    "<image>",
    "<reserved08706>",
    "IMGIMGAZ",
    "<0x41>",
)
ODD = " \t\n\r\0\u00a0\u2003\u3000\u200b\u200d\u2028\u2581\u0301\u202e\ufe0f\ufeff\ufffd\U000e0001\U0010ffff"
RANGES = (
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x370, 0x600),
    (0x600, 0x700),
    (0x900, 0xE80),
    (0x3040, 0x3100),
    (0x4E00, 0x9FFF),
)


def shared_texts() -> Iterator[str]:
    """Every text of the shared data's JSONL files, in the order of their names; none where there are none."""
    for folder in FOLDERS:
        for path in sorted((SHARED_DATA / folder).glob("*.jsonl")):
            for line in path.read_bytes().splitlines():  # of bytes: U+2028 ends no line
                yield from _strings(json.loads(line))


def installed_texts() -> Iterator[str]:
    """Sources and documentation of the installed packages, in a fixed order that mixes the packages."""
    root = Path(sysconfig.get_paths()["purelib"])
    names = (p for p in root.rglob("*") if p.suffix in PACKAGES_SUFFIXES and "__pycache__" not in p.parts)
    for path in sorted(names, key=lambda p: hashlib.blake2b(str(p.relative_to(root)).encode()).digest()):
        try:
            if path.stat().st_size <= MAX_FILE:
                yield path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue


def real_texts(max_bytes: int) -> Iterator[str]:
    """Different real texts of so many UTF-8 bytes in all; the last one is cut."""
    seen: set[bytes] = set()
    left = max_bytes
    for texts in (shared_texts(), installed_texts()):
        for text in texts:
            digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
            if digest in seen:
                continue
            seen.add(digest)
            if left <= 0:
                return
            size = len(text.encode("utf-8", "replace"))
            yield text if size <= left else text.encode("utf-8", "replace")[:left].decode("utf-8", "ignore")
            left -= size


def strings(count: int, seed: int = 0) -> Iterator[str]:
    """Half of them cut from real texts at random, half made to find faults."""
    rng = random.Random(seed)
    real = _cuts(rng)
    for number in range(count):
        yield next(real) if number % 2 else adversarial(rng)


def adversarial(rng: random.Random) -> str:
    """A string of what breaks tokenizers: runs, control names, odd and any characters, torn and mixed."""
    kind = rng.randrange(7)
    if kind == 0:
        return rng.choice(ODD + "a =-_.0") * rng.randint(1, 150)
    if kind == 1:
        return "".join(rng.choice((*CONTROLS, " ", "a", "\n", "▁")) for _ in range(rng.randint(1, 12)))
    if kind == 2:
        return "".join(rng.choice(ODD + "aA1") for _ in range(rng.randint(0, 60)))
    if kind == 3:
        return "".join(_any(rng) for _ in range(rng.randint(1, 40)))
    if kind == 4:
        low, high = rng.choice(RANGES)
        return "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 60)))
    if kind == 5:  # few letters: many ways to merge
        alphabet = rng.choice(("ab", "the ", "in", "-=", " e", "01", "\n ", "ation"))
        return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 120)))
    name = rng.choice(CONTROLS)
    at = rng.randrange(len(name))
    return name[:at] + rng.choice(("", " ", "\u200b", "▁", name)) + name[at:] + "e\u0301" * rng.randint(0, 9)


def _any(rng: random.Random) -> str:
    """Any Unicode scalar value."""
    code = rng.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)


def _cuts(rng: random.Random) -> Iterator[str]:
    """Stretches of up to 200 characters at random places of real texts, for ever."""
    texts = [t for t in islice(real_texts(40_000_000), 20_000) if len(t) > 1]
    while True:
        text = rng.choice(texts)
        start = rng.randrange(len(text))
        yield text[start : start + rng.randint(1, 200)]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= LEAST_CHARS:
            yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
