"""The ledger of one step that keeps samples part by part: sums, and every check that needs to see a part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from infra.store.commit import done_parts, load_own_manifest, load_parts, own_retries, retry_of
from infra.store.manifest import PartManifest, Rows, StepManifest
from tasks.addresses import Addresses, PartName, parse_part
from tasks.ledger_table import FATES

KEPT_FAULTS = 1000
SHOWN_MISSING = 20

State = Literal["done", "under way", "to do"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A place where the ledger does not close."""

    step: str
    source: str
    part: str
    what: str

    def __str__(self) -> str:
        return f"{' '.join(w for w in (self.step, self.source, self.part) if w)}: {self.what}"


@dataclass
class SourceLedger:
    """One source in one step, summed over its parts."""

    rows: Rows = field(default_factory=Rows)
    retries: dict[int, Rows] = field(default_factory=dict)
    """What the parts of each retry hold."""
    retried: dict[int, dict[str, int]] = field(default_factory=dict)
    """Rows by error class that each retry took out of this step's quarantine, as its manifest says."""

    @property
    def net(self) -> Rows:
        """Every row once: those that were tried again where they ended."""
        whole = _of_source(self.rows)
        for retry in sorted(self.retries):
            whole = whole.with_retry(_of_source(self.retries[retry], self.retried.get(retry)))
        return whole.rows[""]


@dataclass
class StepLedger:
    """One step: how far it is, and its sources."""

    step: str
    folder: str
    state: State
    parts: int = 0
    expected: int | None = None
    """Parts that the finished step has; None where that is not known."""
    missing: int = 0
    first_missing: list[str] = field(default_factory=list)
    sources: dict[str, SourceLedger] = field(default_factory=dict)


@dataclass
class Ledger:
    """What was found."""

    steps: list[StepLedger] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    """The first thousand."""
    fault_count: int = 0

    def fault(self, what: str, step: str, source: str = "", part: str = "") -> None:
        self.fault_count += 1
        if len(self.faults) < KEPT_FAULTS:
            self.faults.append(Fault(step, source, part, what))


class _Tally:
    """A sum of many lines; much faster than adding them as models."""

    def __init__(self) -> None:
        self._entered = self._out = 0
        self._gone = {fate: Counter[str]() for fate in FATES}

    def add(self, rows: Rows) -> None:
        self._entered += rows.entered
        self._out += rows.out
        for fate, counts in self._gone.items():
            if found := getattr(rows, fate):
                counts.update(found)

    def rows(self) -> Rows:
        gone = {fate: dict(sorted(counts.items())) for fate, counts in self._gone.items()}
        return Rows(entered=self._entered, out=self._out, **gone)


class StoreCheck:
    """One of the steps that keep samples part by part."""

    def __init__(self, addresses: Addresses, step: str, ledger: Ledger, sources: set[str]) -> None:
        self.step, self._ledger, self._sources = step, ledger, sources
        self._store = addresses.store(step)
        self._fingerprint = addresses.prints[step]
        self._manifest = addresses.manifest(step)
        self.done = done_parts(self._store)
        self._known: set[str] | None = None
        self._excess: dict[tuple[str, int], int] = {}
        state: State = "done" if self._manifest else "under way" if self.done else "to do"
        self.found = StepLedger(step, addresses.folder(step), state)
        self._own: dict[int, StepManifest] = {}
        for retry in (0, *own_retries(self._store)) if self._manifest else ():
            if (own := load_own_manifest(self._store, retry)) is not None:
                self._own[retry] = own
        # A step that was finished after a retry of earlier ones names the retry's parts as its own.
        self._listed = {part: retry for retry, own in self._own.items() for part in own.parts}
        self._held = {*self._own, *map(retry_of, self._listed)}
        self._tallies: dict[tuple[int | None, str, int], _Tally] = {}
        """By the retry whose manifest lists a part, by source, and by the retry in the part's name."""

    def expect(self, known: set[str] | None) -> None:
        """Is told the names of the work items' parts; None where they are not listed yet."""
        self._known = known
        if known is not None:
            own = [n for n in known if part_name(n).source in self._sources]
            self.found.expected = len(own)

    def load(self, parts: Sequence[str]) -> dict[str, PartManifest]:
        present = [part for part in parts if part in self.done]
        return dict(zip(present, load_parts(self._store, present), strict=True))

    def add(self, manifest: PartManifest, part: str, before: PartManifest | None, *, first: bool) -> None:
        """Checks one part, against the part of the same name in the step before; and adds it up."""
        rows, name = manifest.rows, part_name(part)
        if (manifest.step, manifest.part, manifest.source) != (self.step, part, name.source):
            self._fault(f"its manifest is that of {manifest.step} {manifest.part} of {manifest.source}", part)
        if manifest.fingerprint != self._fingerprint:
            self._fault(f"its manifest has fingerprint {manifest.fingerprint[:12]}; the folder's is another", part)
        if rows.balance:
            self._fault(open_by(rows), part)
        if self._known is not None and (name.base if name.source else part) not in self._known:
            self._fault("scan lists no work item of this name", part)
        self.found.parts += 1
        self._tallies.setdefault((self._listed.get(part), manifest.source, name.retry), _Tally()).add(rows)
        left = before.rows.out if before is not None else 0
        if name.retry:
            tried = (manifest.source, name.retry)
            self._excess[tried] = self._excess.get(tried, 0) + rows.entered - left
            if rows.entered < left:
                self._fault(f"{left:,} rows left the step before and {rows.entered:,} entered", part)
            return
        if not first and (before is None or rows.entered != left):
            self._fault(f"{left:,} rows left the step before and {rows.entered:,} entered", part)

    def lacks(self, part: str) -> None:
        """Takes note of a work item without a part here."""
        self.found.missing += 1
        if len(self.found.first_missing) < SHOWN_MISSING:
            self.found.first_missing.append(part)
        if self._manifest is not None and part_name(part).retry in self._held:
            self._fault("the step is finished and this part has no manifest. Run: calumma verify --repair", part)

    def finish(self) -> None:
        """Sums, and compares the sums with what the step's manifests say."""
        sums: dict[tuple[int | None, str], Rows] = {}
        for (listed, source, retry), tally in self._tallies.items():
            rows, line = tally.rows(), self.found.sources.setdefault(source, SourceLedger())
            sums[listed, source] = sums.get((listed, source), Rows()) + rows
            if retry:
                line.retries[retry] = line.retries.get(retry, Rows()) + rows
            else:
                line.rows = line.rows + rows
        for retry, own in self._own.items():
            for source, again in own.retried.items():
                if source in self._sources:
                    self.found.sources.setdefault(source, SourceLedger()).retried[retry] = again
            for source, rows in own.rows.items():
                summed = sums.get((retry, source), Rows())
                if source in self._sources and rows != summed:
                    what = f"the step's manifest says {short(rows)} and its parts sum to {short(summed)}"
                    self._fault(what, source=source)
        if self._manifest is not None:
            for part in sorted(self.done - self._listed.keys()):
                if part_name(part).source in self._sources and part_name(part).retry in self._held:
                    self._fault("the step's manifest does not name this part", part)
        for source, line in self.found.sources.items():
            self._check_retries(source, line)

    def _check_retries(self, source: str, line: SourceLedger) -> None:
        for retry, again in line.retried.items():
            entered = self._excess.get((source, retry), 0)
            if entered != sum(again.values()):
                self._fault(
                    f"retry {retry} says that it tried {sum(again.values()):,} quarantined rows again; "
                    f"{entered:,} more entered than the step before let through", source=source,
                )  # fmt: skip
        for reason, count in line.net.quarantined.items():
            if count < 0:
                what = f"{-count:,} more rows of class {reason} were tried again than were quarantined"
                self._fault(what, source=source)

    def _fault(self, what: str, part: str = "", source: str = "") -> None:
        self._ledger.fault(what, self.step, source or part_name(part).source, part)


def part_name(part: str) -> PartName:
    """What a part's name says; one without a source for a name that is none of ours."""
    return parse_part(part) or PartName("", 0)


def _of_source(rows: Rows, retried: dict[str, int] | None = None) -> StepManifest:
    return StepManifest(step="", fingerprint="", rows={"": rows}, retried={"": retried or {}})


def open_by(rows: Rows) -> str:
    """A line that does not close, in words."""
    word = "lost" if rows.balance > 0 else "doubled"
    return f"the ledger is open by {rows.balance:+,}: {abs(rows.balance):,} rows were {word} ({short(rows)})"


def short(rows: Rows) -> str:
    """``in 400, out 398, 2 quarantined``."""
    gone = {k: getattr(rows, k) for k in ("filtered", "duplicate", "quarantined", "removed")}
    words = [f"{sum(found.values()):,} {fate}" for fate, found in gone.items() if found]
    return ", ".join([f"in {rows.entered:,}", f"out {rows.out:,}", *words])
