"""Does a tokenizer give back what it was given? A few texts that tell which kinds of text it alters."""

from __future__ import annotations

from collections.abc import Callable

PROBES: dict[str, str] = {
    "white space at the ends": "  a ",
    "runs of spaces": "a   b",
    "tabs and ends of lines": "\ta\r\n\n\rb\x0b\x0c",
    "spaces other than U+0020": "a\u00a0b\u2003c\u3000d\u200be\u2028f",
    "U+2581, which some tokenizers write for a space": "a\u2581b \u2581",
    "composed and decomposed letters": "\u00e9 e\u0301 \u212b \u1e9b\u0323",
    "compatibility forms": "\ufb01 \u2460 \uff21 \u00bd \u338f",
    "upper and lower case": "Aa \u0130 \u00df \u1e9e \u03a3\u03c2",
    "NUL, control characters and marks": "a\0b\x01\x7f\ufeff\u200e",
    "rare, private and unassigned characters": "\U0001f469\u200d\U0001f467\U0001f3fd \U0010ffff \ue000 \u0378 \ufffe",
    "right-to-left scripts": "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "scripts without spaces": "\u8d64\u30ea\u30f3\u30b4\u0e41\u0e2d\u0e1b",
    "digits and signs": "1234567890 \u0661\u0662 3.14e-5 ($%&)",
    "names of control ids": "<s></s><unk> <racm3:break>IMGIMGAZ<eoss> <reserved08706> <0x41>",
}


def altered(there_and_back: Callable[[str], str]) -> tuple[str, ...]:
    """The kinds of text that do not come back as they went."""
    return tuple(kind for kind, text in PROBES.items() if there_and_back(text) != text)
