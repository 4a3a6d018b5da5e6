"""The ledger's lines as a table, for every command that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.table import Table
from rich.text import Text

from infra.store.manifest import Rows

EQUATION = "in = out + filtered + duplicate + quarantined + removed"
FATES = ("filtered", "duplicate", "quarantined", "removed")


def ledger_table(lines: Iterable[tuple[str, str, Rows]]) -> Table:
    """A line a step and source: (step, source, rows), checked one by one."""
    table = Table(title=f"Ledger: {EQUATION}", title_justify="left")
    for column in ("step", "source", "in", "out", "what went away", "balance"):
        table.add_column(column, justify="right" if column in ("in", "out") else "left", overflow="fold")
    for step, source, rows in lines:
        balance = Text("closed", "green") if rows.balance == 0 else Text(f"open by {rows.balance:+,}", "red")
        gone = Text("\n".join(gone_words(rows)))
        table.add_row(step, Text(source), f"{rows.entered:,}", f"{rows.out:,}", gone, balance)
    return table


def gone_words(rows: Rows) -> Iterator[str]:
    """``3 quarantined (bad-json)``, a reason at a time."""
    for fate in FATES:
        for reason, count in sorted(getattr(rows, fate).items()):
            yield f"{count:,} {fate} ({reason})"
