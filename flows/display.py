"""What a terminal shows of a run: a line a finished step, a bar for the running one; plain lines without a tty."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from infra.store.manifest import Rows, StepManifest
from tasks.steps import BY_NAME

PLAIN_INTERVAL_S = 10.0


class Display:
    """Follows a pipeline's steps."""

    def __init__(self, steps: Sequence[str], console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._steps = list(steps)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._spoke = 0.0
        self._step = ""

    def start(self, step: str) -> None:
        """A step begins."""
        self._step, self._started, self._spoke = step, time.monotonic(), time.monotonic()
        number = f"{self._steps.index(step) + 1:>2}/{len(self._steps)}"
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(f"[bold]{number} {step}[/]", total=None, count=BY_NAME[step].about)
        else:
            self._console.print(f"{number} {step}: {BY_NAME[step].about}")

    def update(self, state: dict[str, Any]) -> None:
        """The running step's progress, as its job reports it."""
        count = describe_progress(state)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state.get("done", 0), total=state.get("total"), count=count)
        elif time.monotonic() - self._spoke >= PLAIN_INTERVAL_S:
            self._spoke = time.monotonic()
            self._console.print(f"   {self._step}: {count}")

    def finish(self, step: str, manifest: StepManifest, *, known: bool) -> None:
        """A step is done; ``known``: it was done before this run."""
        self.stop()
        number = f"{self._steps.index(step) + 1:>2}/{len(self._steps)}"
        took = "  known" if known else f"{time.monotonic() - self._started:5.0f} s"
        self._console.print(f"[green]✓[/] {number} [bold]{step:<16}[/] {took}  {summary(manifest)}", soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Prints something beside a finished step, such as a table."""
        self._console.print(what)

    def stop(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None


def describe_progress(state: dict[str, Any]) -> str:
    """``1,024 of 1,914 pictures, 212/s, 3 quarantined, loss 2.31``."""
    parts = []
    if "total" in state:
        rate = state["rate"]
        parts.append(f"{state['done']:,.0f} of {state['total']:,.0f} {state['unit']}")
        if rate:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
        if state["quarantined"]:
            parts.append(f"{state['quarantined']} quarantined")
    if state.get("note"):
        parts.append(state["note"])
    return ", ".join(parts)


def summary(manifest: StepManifest) -> str:
    """A finished step in one line: its ledger, its tokens, its most telling figures."""
    parts = []
    if manifest.rows:
        rows = sum(manifest.rows.values(), Rows())
        gone = {
            "filtered": rows.filtered,
            "duplicate": rows.duplicate,
            "quarantined": rows.quarantined,
            "removed": rows.removed,
        }
        parts.append(f"{rows.entered:,} in → {rows.out:,} out")
        parts += [f"{sum(v.values()):,} {k}" for k, v in gone.items() if v]
    parts += [f"{count:,} {modality} tokens" for modality, count in sorted(manifest.tokens.items()) if count]
    for key in HEADLINES:
        value = manifest.facts.get(key)
        if isinstance(value, float):
            parts.append(f"{key.replace('_', ' ')} {value:,.4g}")
        elif isinstance(value, int | str):
            parts.append(f"{key.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{key}: {value}")
    return ", ".join(parts)


HEADLINES = ("headline", "steps", "parameters", "psnr", "codebook_used", "fill", "loss", "max_abs_diff")
"""Facts that are shown where a step has them."""
