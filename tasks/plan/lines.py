"""A line of a plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One figure: what it is, how it comes about, and what it costs."""

    step: str
    what: str
    arithmetic: str
    value: str
    cost: float = 0.0
