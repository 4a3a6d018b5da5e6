"""Figures in words, for people."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size_in_words(n: float) -> str:
    """Bytes with three significant digits, in powers of 1,000: ``999 B``, ``75.7 kB``, ``4.2 MB``, ``1,234 PB``."""
    if n < 999.5:
        return f"{n:,.0f} B"
    unit = 0
    while n >= 999.5 and unit < len(_UNITS) - 1:  # what rounds to 1,000 belongs to the next unit
        n, unit = n / 1000, unit + 1
    return f"{n:,.0f} {_UNITS[unit]}" if n >= 999.5 else f"{n:.3g} {_UNITS[unit]}"
