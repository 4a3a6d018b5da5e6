from __future__ import annotations

import io

from rich.console import Console

from flows.display import Display, describe_progress, summary
from infra.store.manifest import Rows, StepManifest

MANIFEST = StepManifest(
    step="scan",
    fingerprint="f",
    rows={"a": Rows(entered=10, out=7, filtered={"x": 1, "y": 1}, quarantined={"truncated": 1})},
    tokens={"text": 1200, "image": 0},
    facts={"psnr": 21.456, "steps": 1200, "secret": {"not": "shown"}},
)


def test_a_step_in_one_line() -> None:
    assert summary(MANIFEST) == ("10 in → 7 out, 2 filtered, 1 quarantined, 1,200 text tokens, steps 1,200, psnr 21.46")


def test_progress_in_words() -> None:
    state = {"done": 1024, "total": 1914, "unit": "pictures", "rate": 212.4, "quarantined": 3, "note": "loss 2.31"}
    assert describe_progress(state) == "1,024 of 1,914 pictures, 212/s, 3 quarantined, loss 2.31"
    assert describe_progress({"note": "its job was killed; submitting it again"}).startswith("its job was killed")


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    display = Display(["scan", "select"], Console(file=out, width=200))
    display.start("scan")
    display.update({"done": 1, "total": 2, "unit": "rows", "rate": 1.0, "quarantined": 0})
    display.finish("scan", MANIFEST, known=False)
    display.finish("select", MANIFEST, known=True)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith(" 1/2 scan: lists work items")
    assert lines[1].startswith("✓  1/2 scan")
    assert "known" in lines[2]


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    display = Display(["scan"], Console(file=out, width=120, force_terminal=True))
    display.start("scan")
    display.update({"done": 1, "total": 2, "unit": "rows", "rate": 1.0, "quarantined": 0})
    display.finish("scan", MANIFEST, known=False)
    assert "1 of 2 rows" in out.getvalue()
    assert "✓" in out.getvalue()
