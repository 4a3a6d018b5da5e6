"""What a worker looks at samples with: made once for each process, and only what the recipe asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tasks.encode.decode import open_image
from tasks.scan.config import ScanConfig
from tasks.scan.faces import Faces
from tasks.scan.filters import Filter, make_filters
from tasks.scan.languages import Languages
from tasks.scan.minhash import NearText
from tasks.scan.overlap import Benchmark
from tasks.sources.base import RawImage


class Pictures:
    """Decodes pictures, and keeps the last one: a pair's picture is wanted again for its score."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._last: tuple[RawImage, Image.Image] | None = None

    def open(self, raw: RawImage) -> Image.Image:
        """Mode RGB, upright; ImageError if it cannot be. ``raw.data`` must not be None."""
        if self._last is None or self._last[0] is not raw:
            self._last = None  # before the next is decoded: never two at once
            assert raw.data is not None
            self._last = (raw, open_image(raw.data, self._max_pixels))
        return self._last[1]


@dataclass(frozen=True)
class Tools:
    """None, or empty, is what the recipe does not ask for."""

    pictures: Pictures
    faces: Faces | None = None
    languages: Languages | None = None
    near: NearText | None = None
    benchmarks: tuple[Benchmark, ...] = ()
    filters: tuple[Filter, ...] = ()

    @classmethod
    def of(cls, config: ScanConfig, folder: str | Path = ".") -> Tools:
        """Those of a recipe whose relative paths start at ``folder``.

        Raises:
            SourceError: A benchmark cannot be read.
            RecipeError: A filter cannot be imported or made.
        """
        tells_language = config.language or config.languages is not None
        return cls(
            pictures=Pictures(config.max_pixels),
            faces=Faces() if config.faces else None,
            languages=Languages(config.min_language_score, config.language_chars) if tells_language else None,
            near=NearText() if config.near_duplicates else None,
            benchmarks=tuple(Benchmark.load(b, folder) for b in config.benchmarks),
            filters=tuple(make_filters(config.filters)),
        )
