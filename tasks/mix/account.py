"""The ledger of ``mix``: which documents the plan uses at least once, and why it does not use the others.

A document is used where the interval of one of its streams reaches it in pass 0. Some groups of one source are a work
item; no document is looked at twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from infra.store.manifest import Rows
from tasks.context import StepContext
from tasks.mix.group import Group, Integers
from tasks.mix.index import NOT_ASKED, TOO_LONG, load_group
from tasks.mix.streams import Stream, in_order
from tasks.pool import PartOutput

GROUPS = 32
"""Groups a work item."""
NOT_PLANNED = "not-planned"
"""The ledger's reason for a document that the plan could use and has no place for."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What one stream uses of a source's documents."""

    stream: str
    key: str
    stop: int
    """How many of its documents it uses altogether."""
    groups: Mapping[str, tuple[int, int]]
    """By group: its number in the stream, and its first document's in pass 0."""


@dataclass(frozen=True, slots=True)
class AccountItem:
    """Some groups of a source."""

    source: str
    number: int
    groups: tuple[str, ...]
    reached: tuple[Reached, ...]
    held_out: int = 0
    """Documents of the source that no training sees, in its first item."""
    held_out_used: int = 0

    @property
    def part(self) -> str:
        return f"account-{self.source}-{self.number:06d}"


class Accountant:
    """Counts one item's documents by their fate."""

    def __init__(self, context: StepContext) -> None:
        self._context, self._recipe = context, context.recipe

    def process(self, item: AccountItem) -> PartOutput:
        entered, out = item.held_out, item.held_out_used
        filtered = Counter({NOT_PLANNED: item.held_out - item.held_out_used})
        for part in item.groups:
            group = load_group(self._context, part)
            used_N = group.held_out_N.copy()  # they are counted already
            for reached in item.reached:
                if part in reached.groups:
                    used_N[self._uses(group, part, reached)] = True
            left_N = np.flatnonzero(~used_N)
            entered += int((~group.held_out_N).sum())
            out += int((used_N & ~group.held_out_N).sum())
            filtered.update(self._reasons(item.source, group, left_N))
        return PartOutput(
            part=item.part,
            source=item.source,
            files={},
            rows=Rows(entered=entered, out=out, filtered={k: n for k, n in sorted(filtered.items()) if n}),
        )

    def _uses(self, group: Group, part: str, reached: Reached) -> Integers:
        number, first = reached.groups[part]
        index_K = in_order(group, reached.key, self._recipe.seed, reached.stream, number, 0)
        return index_K[: max(0, reached.stop - first)]

    def _reasons(self, source: str, group: Group, left_K: Integers) -> Counter[str]:
        """Why documents are not used: the first condition of pre-training, else what keeps them from fine-tuning."""
        where, asked = self._recipe.mix.where, self._recipe.finetune_mix.where
        names = {(0, code): NOT_PLANNED for code in (0, NOT_ASKED)} | {(0, TOO_LONG): "too-long"}
        names |= {(0, TOO_LONG + n): name for n, name in enumerate(asked.get(source, {}), 1)}
        pretrain = dict(enumerate(where.get(source, {}), 1))
        found = Counter[str]()
        codes, counts = np.unique(
            np.stack([group.pretrain_N[left_K], group.finetune_N[left_K]]), axis=1, return_counts=True
        )
        for (first, second), count in zip(codes.T.tolist(), counts.tolist(), strict=True):
            found[pretrain[first] if first else names[0, second]] += count
        return found


def account_items(
    groups: Mapping[str, Sequence[str]], streams: Sequence[tuple[Stream, int]], held_out: Mapping[str, tuple[int, int]]
) -> list[AccountItem]:
    """The work items of all sources.

    Args:
        groups: Index parts by source.
        streams: Each stream that trains, and how many of its documents are used.
        held_out: By source, documents that no training sees, and how many of them are packed.
    """
    known = []
    for stream, stop in streams:
        firsts = stream.firsts()
        known.append((stream, stop, {part: (n, firsts[part]) for n, part in enumerate(stream.groups)}))
    items = []
    for source, parts in groups.items():
        for number, first in enumerate(range(0, len(parts), GROUPS)):
            own = tuple(parts[first : first + GROUPS])
            reached = tuple(
                Reached(stream.name, stream.key, stop, {p: places[p] for p in own if p in places})
                for stream, stop, places in known
                if any(p in places for p in own)
            )
            held = held_out.get(source, (0, 0)) if number == 0 else (0, 0)
            items.append(AccountItem(source, number, own, reached, *held))
    return items
