"""A training's course in bounded size, however long it is: what its plots are drawn from, live and in the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from model.training.monitors import flat

BINS = 300
"""Points of a curve, at most."""
LAYERS = 6
"""Layers whose curves are kept, evenly spread from the first to the last."""


class Point(NamedTuple):
    """A curve's value over a stretch of steps."""

    step: int
    """The stretch's last."""
    mean: float
    low: float
    high: float


class History:
    """Takes lines of ``metrics.jsonl`` in the order of their steps; keeps means and extremes over equal stretches.

    When there are too many stretches, two become one. A line whose step is not beyond the last one says that the
    training went back: stretches that reach it are dropped.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]] = (), *, bins: int = BINS) -> None:
        self._most, self._each = bins, 1
        self._bins: list[dict[str, Any]] = []
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """Counts a step's line."""
        step = int(line["step"])
        while self._bins and self._bins[-1]["step"] >= step:
            self._bins.pop()
        if not self._bins or self._bins[-1]["lines"] >= self._each:
            if len(self._bins) >= self._most:
                pairs = zip(self._bins[::2], [*self._bins[1::2], None], strict=False)
                self._bins, self._each = [_merged(a, b) for a, b in pairs], 2 * self._each
            self._bins.append({"step": step, "stage": "", "lines": 0, "of": {}})
        now = self._bins[-1]
        now["step"], now["lines"], now["stage"] = step, now["lines"] + 1, str(line.get("stage", ""))
        for name, value in _kept(line):
            if math.isfinite(value):
                now["of"][name] = _sum(now["of"].get(name), [1, value, value, value])

    def names(self) -> list[str]:
        """Of the curves there are, in alphabetical order; see :func:`model.training.monitors.flat`."""
        return sorted({name for found in self._bins for name in found["of"]})

    def curve(self, name: str) -> list[Point]:
        """A curve's points; stretches without one are left out."""
        found = [(b["step"], b["of"][name]) for b in self._bins if name in b["of"]]
        return [Point(step, total / n, low, high) for step, (n, total, low, high) in found]

    def stages(self) -> dict[str, tuple[float, float]]:
        """First and last step of each stage, as exact as the stretches are."""
        found: dict[str, tuple[float, float]] = {}
        before = 0
        for b in self._bins:
            start, _ = found.get(b["stage"], (before + 1, 0))
            found[b["stage"]] = (start, b["step"])
            before = b["step"]
        return found

    @property
    def last(self) -> int:
        """The last step; 0 before the first line."""
        return int(self._bins[-1]["step"]) if self._bins else 0

    def state_dict(self) -> dict[str, Any]:
        """As plain JSON, figures to six digits; see :meth:`of`."""
        bins = [
            {**found, "of": {name: [float(f"{v:.6g}") for v in sums] for name, sums in found["of"].items()}}
            for found in self._bins
        ]
        return {"each": self._each, "most": self._most, "bins": bins}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> History:
        """A history from what :meth:`state_dict` gave."""
        found = cls(bins=state["most"])
        found._each, found._bins = state["each"], list(state["bins"])
        return found


def _merged(a: dict[str, Any], b: dict[str, Any] | None) -> dict[str, Any]:
    if b is None:
        return a
    of = {name: _sum(a["of"].get(name), b["of"].get(name)) for name in {**a["of"], **b["of"]}}
    return {"step": b["step"], "stage": b["stage"], "lines": a["lines"] + b["lines"], "of": of}


def _sum(a: list[float] | None, b: list[float] | None) -> list[float]:
    """Of two [count, sum, least, largest]."""
    if a is None or b is None:
        return list(a or b or ())
    return [a[0] + b[0], a[1] + b[1], min(a[2], b[2]), max(a[3], b[3])]


def _kept(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A line's figures, of lists by layer only some."""
    short = {k: v for k, v in line.items() if not isinstance(v, list)}
    yield from flat(short)
    norms = line.get("residual_norms", ())
    for place in sorted({round(i * (len(norms) - 1) / (LAYERS - 1)) for i in range(LAYERS)} if norms else ()):
        yield f"train/residual_norms/{place:02d}", float(norms[place])
