"""The ledger for people and for programs: tables, a line a part, JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from infra.store.manifest import Rows
from tasks.ledger_parts import Ledger, SourceLedger, StepLedger
from tasks.ledger_table import gone_words, ledger_table

SHOWN_FAULTS = 50


def render(ledger: Ledger, guessed: str = "") -> Iterator[RenderableType]:
    """The whole: a table, which parts are missing, and where it does not close."""
    if guessed:
        yield Text(f"The sources cannot be read ({guessed}): the newest jobs' folders are shown.", "yellow")
    yield ledger_table(line for step in ledger.steps for line in _lines(step))
    for step in ledger.steps:
        if step.missing and step.state != "to do":
            more = f" … and {step.missing - len(step.first_missing):,} more"
            names = ", ".join(step.first_missing) + (more if step.missing > len(step.first_missing) else "")
            yield Text(f"{step.step}: {step.parts:,} of {step.expected:,} parts; missing {names}", "yellow")
    if not ledger.fault_count:
        parts = sum(s.parts for s in ledger.steps)
        begun = sum(s.state != "to do" for s in ledger.steps)
        steps = "1 step" if begun == 1 else f"{begun} steps"
        yield Text(f"Closed: {parts:,} parts in {steps}, each part and from step to step.", "green")
        return
    yield Text(f"Open at {ledger.fault_count:,} places:", "bold red")
    for fault in ledger.faults[:SHOWN_FAULTS]:
        yield Text(f"  {fault}", "red")
    if ledger.fault_count > SHOWN_FAULTS:
        yield Text(f"  … and {ledger.fault_count - SHOWN_FAULTS:,} more", "red")


def part_line(part: str, rows: Mapping[str, Rows | None]) -> str:
    """``emoji-000003  scan 400 → 398 · 2 quarantined (bad-json)  select 398 → 398 …``."""
    pieces = []
    for step, found in rows.items():
        if found is None:
            pieces.append(f"{step} –")
            continue
        gone = "".join(f" · {word}" for word in gone_words(found))
        balance = f" · OPEN by {found.balance:+,}" if found.balance else ""
        pieces.append(f"{step} {found.entered:,} → {found.out:,}{gone}{balance}")
    return f"{part}  " + "  |  ".join(pieces)


def as_json(ledger: Ledger) -> dict[str, Any]:
    """The ledger as plain data."""
    return {
        "closed": ledger.fault_count == 0,
        "steps": [
            {
                **{k: getattr(step, k) for k in ("step", "folder", "state", "parts", "expected", "missing")},
                "first_missing": step.first_missing,
                "sources": {name: _source(line) for name, line in step.sources.items()},
            }
            for step in ledger.steps
        ],
        "fault_count": ledger.fault_count,
        "faults": [asdict(fault) for fault in ledger.faults],
    }


def _source(line: SourceLedger) -> dict[str, Any]:
    return {
        "rows": _rows(line.rows),
        "retries": {str(k): _rows(r) | {"retried": line.retried.get(k, {})} for k, r in sorted(line.retries.items())},
        "net": _rows(line.net),
    }


def _rows(rows: Rows) -> dict[str, Any]:
    return rows.model_dump(by_alias=True) | {"balance": rows.balance}


def _lines(step: StepLedger) -> Iterator[tuple[str, str, Rows]]:
    for source, line in step.sources.items():
        yield step.step, source, line.rows
        for retry, rows in sorted(line.retries.items()):
            tried = sum(line.retried.get(retry, {}).values())
            yield "", f"  retry {retry}" + (f": {tried:,} retried" if tried else ""), rows
        if line.retries:
            yield "", "  net", line.net
