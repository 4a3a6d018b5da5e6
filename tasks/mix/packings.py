"""What is to be packed: stages, epochs and held-out documents, as streams, intervals and slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from infra.errors import RecipeError
from infra.store.manifest import PartManifest
from infra.store.plan import Interval
from tasks.mix.config import MixConfig
from tasks.mix.group import FINETUNE, HELD_OUT, PRETRAIN
from tasks.mix.layout import SliceItem, Strand
from tasks.mix.plan import finetune_intervals, named, outline, pretrain_intervals, supply_of
from tasks.mix.streams import Load, Run, Stream
from tasks.recipe import Recipe

Kind = Literal["pretrain", "finetune", "held-out"]
FOLDERS: dict[Kind, str] = {"pretrain": "stages", "finetune": "finetune", "held-out": "held-out"}


@dataclass(frozen=True)
class Streams:
    """The sources' groups with their sums, and the streams made of them."""

    recipe: Recipe
    load: Load
    groups: dict[str, list[str]]
    """Index parts by source."""
    facts: dict[str, Mapping[str, Any]]
    """By index part."""

    @classmethod
    def of(cls, index: Iterable[PartManifest], recipe: Recipe, load: Load) -> Streams:
        groups: dict[str, list[str]] = {source.name: [] for source in recipe.sources}
        facts: dict[str, Mapping[str, Any]] = {}
        for manifest in index:
            groups[manifest.source].append(manifest.part)
            facts[manifest.part] = manifest.facts
        return cls(recipe, load, groups, facts)

    def stream(self, name: str, key: str, sources: Iterable[str]) -> Stream:
        """The stream of that name: what these sources' groups hold under a key."""
        parts = [part for source in sources for part in self.groups[source]]
        groups = [(part, self.facts[part]["streams"][key]) for part in parts if key in self.facts[part]["streams"]]
        return Stream(name, key, groups, self.load, self.recipe.seed)

    def documents(self, source: str) -> int:
        """Of a source altogether."""
        return sum(self.facts[part]["documents"] for part in self.groups[source])

    def categories(self, sources: Iterable[str]) -> list[str]:
        """Of the conversations that fine-tuning may use."""
        found = {key for s in sources for part in self.groups[s] for key in self.facts[part]["streams"]}
        return sorted(key.removeprefix(FINETUNE) for key in found if key.startswith(FINETUNE))

    def too_long(self, source: str, kind: str) -> int:
        """Conversations that are longer than a sequence, and that ``finetune`` or ``held-out`` goes without."""
        return sum(self.facts[part]["too_long"][kind] for part in self.groups[source])

    def used(self, packings: Sequence[Packing]) -> list[tuple[Stream, int]]:
        """Each stream that trains, and how many of its documents, counted over all passes, the packings take."""
        stops: dict[str, tuple[Stream, int]] = {}
        for packing in packings:
            if packing.kind != "held-out":
                for stream, interval in zip(packing.streams, packing.intervals, strict=True):
                    stops[f"{packing.kind} {stream.name}"] = stream, interval.stop
        return list(stops.values())

    def held_out(self, packings: Sequence[Packing]) -> dict[str, tuple[int, int]]:
        """By source: documents that are held out, and how many of them are packed."""
        packed = {p.name: p.held_out for p in packings if p.kind == "held-out"}
        return {s: (sum(self.facts[p]["held_out"] for p in parts), packed[s]) for s, parts in self.groups.items()}


@dataclass(eq=False)
class Packing:
    """A folder to be written: what goes in, and, once it is laid out, how many sequences that makes."""

    kind: Kind
    name: str
    streams: list[Stream]
    intervals: list[Interval]
    loss: bool
    left_out: int = 0
    limit: int = 0
    """Of held-out documents: sequences at most."""
    layouts: list[str] = field(default_factory=list)
    """The slices' tables, relative to ``parts/``."""
    slices: list[int] = field(default_factory=list)
    """Sequences by slice."""
    documents: int = 0
    split_documents: int = 0
    held_out: int = 0
    """Held-out documents that are packed, each counted once."""

    @property
    def store(self) -> str:
        return f"{FOLDERS[self.kind]}/{self.name}"

    @property
    def sequences(self) -> int:
        return sum(self.slices)

    def laid_out(self, facts: Sequence[Mapping[str, Any]]) -> None:
        """Takes in what the slices became."""
        self.slices = [found["sequences"] for found in facts]
        self.documents, self.split_documents, self.held_out = (
            sum(found[key] for found in facts) for key in ("documents", "split_documents", "held_out")
        )


class Packings:
    """Turns the recipe's mixture into packings."""

    def __init__(self, recipe: Recipe, streams: Streams) -> None:
        self._recipe, self._streams = recipe, streams

    def all(self) -> list[Packing]:
        """Stages, epochs, then each source's held-out documents."""
        finetune = self._finetune() if self._recipe.finetune_mix.sources else []
        return [*self._pretrain(), *finetune, *(self._held_out(s.name, s.kind) for s in self._recipe.sources)]

    def _pretrain(self) -> list[Packing]:
        mix = self._recipe.mix
        streams = {name: self._streams.stream(name, PRETRAIN, [name]) for name in named(mix)}
        wanted = outline(mix, {n: supply_of(s, self._streams.documents(n)) for n, s in streams.items()})
        return [
            Packing("pretrain", stage.name, [streams[i.stream] for i in intervals], intervals, loss=False)
            for stage, intervals in zip(mix.stages, pretrain_intervals(mix, streams, wanted), strict=True)
        ]

    def _finetune(self) -> list[Packing]:
        config = self._recipe.finetune_mix
        categories = self._streams.categories(config.sources)
        if not categories:
            raise RecipeError(
                f"finetune_mix.sources: {', '.join(config.sources)} hold no conversation to train on of at most "
                f"mix.sequence_length = {self._recipe.mix.sequence_length} tokens"
                + (" that finetune_mix.where lets pass" if config.where else "")
                + ". Look into tokenize's ledger."
            )
        streams = {c: self._streams.stream(c, FINETUNE + c, config.sources) for c in categories}
        left_out = sum(self._streams.too_long(source, "finetune") for source in config.sources)
        return [
            Packing("finetune", f"epoch-{n}", [streams[i.stream] for i in intervals], intervals, True, left_out)
            for n, intervals in enumerate(finetune_intervals(config, streams))
        ]

    def _held_out(self, source: str, kind: str) -> Packing:
        """Each document once, a pair once in either order: occurrences 0 and 1."""
        stream = self._streams.stream(source, HELD_OUT, [source])
        messages = kind == "messages"
        left_out = self._streams.too_long(source, "held-out")
        limit = self._recipe.mix.held_out_sequences
        return Packing("held-out", source, [stream], [], loss=messages, left_out=left_out, limit=limit)


def slices_of(packing: Packing, mix: MixConfig) -> list[SliceItem]:
    """The packing's slices as work items; what they will be called is noted in it."""
    if packing.kind == "held-out":
        (stream,) = packing.streams
        runs = _enough(stream.runs(0, stream.per_pass), packing.limit * mix.sequence_length)
        strand = Strand(stream.name, stream.key, 0, stream.per_pass, max(1, stream.supply.tokens), tuple(runs))
        items = [SliceItem(packing.store, 0, 1, (strand,), packing.limit)]
    else:
        items = _slices(packing, mix)
    packing.layouts = [item.file for item in items]
    return items


def _slices(packing: Packing, mix: MixConfig) -> list[SliceItem]:
    tokens = sum(i.tokens for i in packing.intervals)
    slices = max(1, -(-tokens // (mix.sequence_length * mix.slice_sequences)))
    if 2 * max((i.tokens for i in packing.intervals), default=0) * slices >= 1 << 63:
        raise RecipeError(
            f"mix.slice_sequences is {mix.slice_sequences:,}, which cuts {packing.name} of {tokens:,} tokens into "
            f"{slices:,} slices; give slices more sequences (1,048,576 is usual)"
        )
    strands: list[list[Strand]] = [[] for _ in range(slices)]
    for stream, i in zip(packing.streams, packing.intervals, strict=True):
        if i.tokens == 0:
            continue
        runs = stream.runs(i.start, i.stop)
        # The slices that a run's documents may lie in: from where it begins to where the next one does.
        begin = [max(0, run.tokens) * slices // i.tokens for run in runs]
        end = [*(min(slices - 1, first) for first in begin[1:]), slices - 1]
        own: list[list[Run]] = [[] for _ in range(slices)]
        for run, first, last in zip(runs, begin, end, strict=True):
            for number in range(first, last + 1):
                own[number].append(run)
        for number, mine in enumerate(own):
            if mine:
                strands[number].append(Strand(stream.name, stream.key, i.start, i.stop, i.tokens, tuple(mine)))
    return [SliceItem(packing.store, n, slices, tuple(found)) for n, found in enumerate(strands)]


def _enough(runs: Sequence[Run], tokens: int) -> list[Run]:
    """The first runs, with as many tokens: what follows would be cut off anyway."""
    ends = [run.tokens for run in runs[1:]]
    return list(runs[: int(np.searchsorted(ends, tokens)) + 1]) if runs else []
