"""A small run on files, with everything that can become of a row: kept, filtered, doubled, lost, tried again."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tasks.context import StepContext
from tasks.documents import run as documents
from tasks.encode import run as encode
from tasks.recipe import Recipe
from tasks.retry import plan_retry
from tasks.scan import run as scan
from tasks.scan import select
from tests.tasks import toy_run

NAMES = [f"{c}-{s}" for c in toy_run.COLOURS for s in toy_run.SHAPES]
LATE, BROKEN, TINY, TWIN, EVIL = 2, 5, 8, 11, 14
"""Rows of the list whose picture is not there yet, is none, is too small, is another's; and a caption with markup."""
CAPTION = "<script>alert('x')</script> & <b>bold</b>"


@dataclass(frozen=True)
class DataRun:
    """The recipe, its folder of pictures, and the work folder."""

    recipe: Recipe
    images: Path
    workdir: Path

    def context(self, step: str, retry: int = 0) -> StepContext:
        return StepContext(self.recipe, str(self.workdir), step, "test", retry)

    def retry(self) -> None:
        """Everything that may be tried again, through all stores, with the late picture there."""
        (self.images / f"{NAMES[LATE]}.png").write_bytes(picture(LATE))
        plan = plan_retry(self.context("scan"))
        assert plan is not None
        scan.run(self.context("scan", plan.number), workers=0)
        select.run(self.context("select", plan.number))
        encode.run(self.context("encode", plan.number), workers=0)
        documents.run(self.context("tokenize", plan.number), workers=0)


@contextmanager
def locked_elsewhere(workdir: Path) -> Iterator[None]:
    """Another process holds the work folder's lock, as a run does."""
    code = (
        "import sys; from pathlib import Path; from infra.lock import locked\n"
        f"with locked(Path({str(workdir)!r})):\n print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.communicate("")


def picture(number: int) -> bytes:
    colour, shape = NAMES[number].split("-")
    return toy_run.picture(colour, shape)


def tiny() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (6, 6), "orange").save(sink, "PNG")
    return sink.getvalue()


def make(folder: Path, until: str = "mix", stage: str = "one", more_texts: Sequence[str] = ()) -> DataRun:
    """Pairs from a list in four work items, and texts (``more_texts``: further lines); up to and with ``until``."""
    images = folder / "images"
    images.mkdir(parents=True)
    lines = []
    for number, name in enumerate(NAMES):
        caption = CAPTION if number == EVIL else name
        lines.append(json.dumps({"file": f"{name}.png", "caption": caption}))
        data = {BROKEN: b"nonsense", TINY: tiny(), TWIN: picture(TWIN - 1)}.get(number, picture(number))
        if number != LATE:
            (images / f"{name}.png").write_bytes(data)
    (folder / "list.jsonl").write_text("\n".join([*lines, "{not json"]) + "\n")
    texts = [json.dumps({"text": f"{name.replace('-', ' ')} is a shape, number {n}."}) for n, name in enumerate(NAMES)]
    (folder / "texts.jsonl").write_text("\n".join([*texts, *more_texts]) + "\n")
    raw: dict[str, Any] = {
        **toy_run.RECIPE,
        "folder": str(folder),
        "sources": [
            {"name": "photos", "type": "pairs", "kind": "pairs", "path": "list.jsonl", "licence": "CC BY 4.0"}
            | {"options": {"images": "images"}},
            {"name": "texts", "type": "text", "kind": "text", "path": "texts.jsonl"},
        ],
        "scan": {"item_samples": 7, "held_out": 0.2, "min_side": 10},
        "mix": {
            "tokens": 1000,
            "sequence_length": toy_run.LENGTH,
            "stages": [{"name": stage, "share": 1, "weights": {"photos": 0.8, "texts": 0.2}}],
        },
        "finetune_mix": {"sources": []},
        "evaluation": {},
    }
    workdir = folder / "work"
    return DataRun(toy_run.make(workdir, until, raw), images, workdir)
