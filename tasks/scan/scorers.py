"""Scorers: a number for every picture, alone or with its texts: aesthetic, NSFW, image-text similarity.

A scorer is a class, named in ``scan.scorers`` by import path, or by short name if it comes with Calumma::

    class Aesthetic:
        def __init__(self, options: Mapping[str, Any], weights: Path | None, device: Device) -> None: ...
        def scores(self, samples: Sequence[ScoredInput]) -> Sequence[float]: ...

It is made once in each worker and given small batches, on the GPU pool's device where there is one. A sample's score is
recorded with it: of several pictures the highest where ``max`` is set, else the lowest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from infra.errors import CalummaError, RecipeError
from tasks.encode.decode import ImageError
from tasks.scan.config import Device, ScorerConfig
from tasks.scan.facts import Finding, storable
from tasks.scan.filters import load_class
from tasks.scan.inputs import local_file
from tasks.scan.tables import FILTERED, KEPT, QUARANTINED
from tasks.scan.tools import Pictures
from tasks.sources.base import RawSample

SCORERS: dict[str, str] = {"nsfw": "tasks.scan.nsfw:OpenNsfw"}
"""Short names of the scorers that come with Calumma."""
BATCH = 16
"""Pictures that a scorer is given at once, and fewer where they are large."""
BATCH_PIXELS = 48_000_000


@dataclass(frozen=True, slots=True)
class ScoredInput:
    """A picture, mode RGB and upright, of any size, and all captions or texts of its sample."""

    picture: Image.Image
    texts: tuple[str, ...]


class Scorer(Protocol):
    """A scorer plugged in; see this module's text."""

    def __init__(self, options: Mapping[str, Any], weights: Path | None, device: Device) -> None: ...

    def scores(self, samples: Sequence[ScoredInput]) -> Sequence[float]: ...


class Scorers:
    """A recipe's scorers, ready to work."""

    def __init__(self, configs: Sequence[ScorerConfig], folder: str | Path, device: Device = "cpu") -> None:
        self.configs = tuple(configs)
        self._made: list[Scorer] = []
        self._files = ExitStack()  # weights copied from S3 stay as long as the scorers do
        for config in configs:
            self._made.append(self._make(config, folder, device))

    def _make(self, config: ScorerConfig, folder: str | Path, device: Device) -> Scorer:
        key = f"scan.scorers.{config.name}"
        cls = scorer_class(config)
        weights = None
        if config.weights is not None:
            weights = self._files.enter_context(local_file(config.weights, folder, f"{key}.weights"))
        try:
            made: Scorer = cls(dict(config.options), weights, device)
        except CalummaError:
            raise
        except Exception as e:  # whatever a foreign class raises, the user should read which one it was
            raise RecipeError(f"{key}: {config.type} cannot be made ({type(e).__name__}: {e})") from e
        return made

    def of(self, number: int, batch: Sequence[ScoredInput]) -> list[float | str]:
        """What the number-th scorer makes of a batch: a score, or what it raised for that picture alone."""
        try:
            return [*self._checked(number, batch)]
        except CalummaError:
            raise
        except Exception as e:
            if len(batch) == 1:
                return [f"{self.configs[number].type}: {type(e).__name__}: {e}"]
            return [score for one in batch for score in self.of(number, [one])]

    def _checked(self, number: int, batch: Sequence[ScoredInput]) -> list[float]:
        scores = [float(s) for s in self._made[number].scores(batch)]
        config = self.configs[number]
        if len(scores) != len(batch):
            raise RecipeError(
                f"scan.scorers.{config.name}: {config.type} returned {len(scores)} scores for {len(batch)} pictures"
            )
        if not all(map(math.isfinite, scores)):
            raise ValueError("a score is not a finite number")
        return scores


class ScoreQueue:
    """Collects the pictures of one work item's kept samples and scores them batch by batch."""

    def __init__(self, scorers: Scorers, pictures: Pictures) -> None:
        self._scorers, self._pictures = scorers, pictures
        self._waiting: list[tuple[int, ScoredInput]] = []
        self._pixels = 0
        self._found: dict[int, list[list[float | str]]] = {}
        """By sample's place: for each scorer the scores of its pictures."""
        self._unusable: dict[int, Finding] = {}

    def add(self, place: int, sample: RawSample) -> None:
        """A kept sample without the pictures that it goes without; ``place`` is its number in the item.

        A picture that cannot be decoded again (for want of memory, say) sends its sample to quarantine.
        """
        texts = (*sample.captions, *(s.text for s in sample.segments if s.text is not None))
        for raw in sample.images:
            try:
                picture = self._pictures.open(raw)
            except ImageError as e:
                self._unusable[place] = Finding(QUARANTINED, e.error_class, f"{storable(raw.name)}: {e.message}")
                return
            self._waiting.append((place, ScoredInput(picture, texts)))
            self._pixels += picture.width * picture.height
            if len(self._waiting) >= BATCH or self._pixels >= BATCH_PIXELS:
                self._score()

    def finish(self, findings: list[Finding]) -> None:
        """Writes the scores into the findings, and what follows from them."""
        self._score()
        for place, scores in self._found.items():
            if place not in self._unusable:
                findings[place] = scored(findings[place], self._scorers.configs, scores)
        for place, finding in self._unusable.items():
            findings[place] = finding

    def _score(self) -> None:
        batch, self._waiting, self._pixels = self._waiting, [], 0
        if not batch:
            return
        inputs = [one for _, one in batch]
        for number in range(len(self._scorers.configs)):
            for (place, _), score in zip(batch, self._scorers.of(number, inputs), strict=True):
                self._found.setdefault(place, [[] for _ in self._scorers.configs])[number].append(score)


def scored(finding: Finding, configs: Sequence[ScorerConfig], scores: Sequence[Sequence[float | str]]) -> Finding:
    """A kept sample's finding with its scores: filtered by the first bound that one of its pictures breaks."""
    recorded: list[tuple[str, float]] = []
    reason = ""
    for config, values in zip(configs, scores, strict=True):
        faults = [v for v in values if isinstance(v, str)]
        if faults:
            return Finding(QUARANTINED, "plugin-error", faults[0])
        numbers = [v for v in values if not isinstance(v, str)]
        recorded.append((config.name, max(numbers) if config.max is not None else min(numbers)))
        below = config.min is not None and min(numbers) < config.min
        above = config.max is not None and max(numbers) > config.max
        reason = reason or (f"score-{config.name}" if below or above else "")
    state = FILTERED if reason else KEPT
    return replace(finding, state=state, reason=reason, scores=tuple(recorded))


def scorer_class(config: ScorerConfig) -> Any:
    """The class that a scorer's ``type`` names; RecipeError if there is none."""
    return load_class(SCORERS.get(config.type, config.type), f"scan.scorers.{config.name}.type")
