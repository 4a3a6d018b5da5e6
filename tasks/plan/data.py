"""How much there is: samples, pictures, tokens, bytes and work items of every source, as stated or as listed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from infra.errors import CalummaError, RecipeError, SourceError
from tasks.mix.plan import Supply
from tasks.recipe import Recipe
from tasks.sources import open_source
from tasks.sources.base import RawSample
from tasks.sources.config import SourceConfig

BYTES_A_TOKEN = 4.0
"""Of text, where a source states neither: English prose under a vocabulary of 49,152 pieces."""


@dataclass(frozen=True)
class SourceSize:
    """A source. Where it states its size (``expected``), that is taken; else its first work item is counted."""

    name: str
    kind: str
    items: int
    samples: int
    pictures: int
    text_tokens: int
    bytes: int
    """Read from storage; 0 where it is not known."""
    basis: str
    """stated, counted, or ≈ counted in the first work item."""


def source_sizes(recipe: Recipe, only: str | None = None) -> tuple[SourceSize, ...]:
    """Every source's size, or one's; SourceError for one that states no size and cannot be reached."""
    names = [s.name for s in recipe.sources]
    if only is not None and only not in names:
        raise RecipeError(f"{recipe.name}: no source is named {only!r}; there are {', '.join(names)}")
    wanted = [s for s in recipe.sources if only in (None, s.name)]
    return tuple(_stated(recipe, s) if s.expected.samples else _counted(recipe, s) for s in wanted)


def supplies(recipe: Recipe, sizes: Iterable[SourceSize]) -> dict[str, Supply]:
    """What each source would have for pre-training if all its samples became documents: ``<s>`` and ``</s>``, for
    conversations an end of turn, and the pictures' tokens beside those of its text."""
    picture = recipe.image_tokenizer.codes_per_image + 2
    found = {}
    for size in sizes:
        control = (3 if size.kind == "messages" else 2) * size.samples
        image = picture * size.pictures
        found[size.name] = Supply(size.samples, size.text_tokens + image + control, image, size.samples)
    return found


def _stated(recipe: Recipe, config: SourceConfig) -> SourceSize:
    expected = config.expected
    samples = expected.samples or 0
    tokens = expected.tokens or 0
    pictures = samples if config.kind == "pairs" else expected.pictures or 0
    items = max(expected.files or 0, -(-samples // recipe.scan.item_samples))
    return SourceSize(config.name, config.kind, items, samples, pictures, tokens, expected.bytes or 0, "stated")


def _counted(recipe: Recipe, config: SourceConfig) -> SourceSize:
    try:
        source = open_source(config, recipe.folder)
        items = list(source.work_items(recipe.scan.item_samples))
        first = list(islice(source.read(items[0]), recipe.scan.item_samples * 2)) if items else []
    except CalummaError as e:
        raise SourceError(
            f"{e}\nTo plan without reaching it, state its size: "
            f"sources.{config.name}.expected: {{samples: …, bytes: …, tokens: …}}"
        ) from e
    samples = [s for s in first if isinstance(s, RawSample)]
    pictures = sum(len(s.images) for s in samples)
    text = sum(len(t.encode("utf-8", "replace")) for s in samples for t in _texts(s))
    size = text + sum(len(i.data or b"") for s in samples for i in s.images)
    n = len(items)
    basis = "counted" if n <= 1 else "≈ counted in the first work item"
    return SourceSize(
        config.name, config.kind, n, len(samples) * n, pictures * n, round(text * n / BYTES_A_TOKEN), size * n, basis
    )


def _texts(sample: RawSample) -> list[str]:
    """One caption of a pair, since an occurrence uses one; else all texts."""
    return list(sample.captions[:1]) + [s.text for s in sample.segments if s.text is not None]
