"""How long steps take: a step lasts from the one before it to its own end, waiting for data and all."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StepClock:
    """Seconds a step, without what is done only now and then."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """The first step begins now."""
        self._began = time.monotonic()
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._aside = 0.0

    @contextmanager
    def part(self, name: str, *, aside: bool = False) -> Iterator[None]:
        """Has a part of the step named in its figures; ``aside``: it is left out of the step's time."""
        began = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - began
            self._parts[name] += took
            self._aside += took if aside else 0.0

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last call without what was set aside, and the parts since then by name; the next step
        begins now."""
        now = time.monotonic()
        took, parts = now - self._began - self._aside, {name: round(s, 4) for name, s in self._parts.items()}
        self.restart()
        self._began = now
        return took, parts
