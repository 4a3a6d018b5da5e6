"""``calumma browse``: one HTML file that needs nothing beside it: a part's samples, and what became of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from infra.errors import RecipeError
from infra.words import size_in_words
from tasks.addresses import Addresses
from tasks.browse.contents import BROWSABLE, PartView, chosen_parts, ledger_lines
from tasks.browse.decoder import Decoder
from tasks.ledger import check_ledger
from tasks.report.html import count
from tasks.scan.facts import storable

FOLDER = Path(__file__).resolve().parent


def browse(
    addresses: Addresses, step: str = "encode", part: str | None = None, limit: int = 200, progress: Any = None
) -> str:
    """The page as HTML.

    Args:
        step: ``encode``: samples with their codes decoded; ``scan``: as soon as samples are scanned.
        part: None: one part of every source, which share ``limit``.
        limit: Samples shown.
        progress: A ``rich.progress.Progress``, or None.
    """
    if step not in BROWSABLE:
        raise RecipeError(f"--step {step}: samples are shown from {' or '.join(BROWSABLE)}")
    parts = chosen_parts(addresses, step, part)
    finished = step == "encode" and addresses.manifest("image-tokenizer") is not None
    decoder = Decoder(addresses.store("image-tokenizer")) if finished else None
    task = progress.add_task("reading", total=len(parts)) if progress is not None else None
    views = []
    for name in parts:
        views.append(PartView(addresses, step, name, max(1, limit // len(parts))).data(decoder))
        if progress is not None:
            progress.update(task, advance=1, description=name)
    if decoder is not None:
        task = progress.add_task("decoding", total=len(decoder)) if progress is not None else None
        for done in decoder.finish():
            if progress is not None:
                progress.update(task, advance=done)
    ledger = check_ledger(addresses)
    return render(
        {
            "name": addresses.recipe.name,
            "root": addresses.root,
            "step": step,
            "folder": addresses.folder(step),
            "guessed": addresses.guessed,
            "ledger": ledger_lines(ledger),
            "faults": [str(fault) for fault in ledger.faults[:50]],
            "fault_count": ledger.fault_count,
            "parts": views,
            "limit": limit,
        }
    )


def render(data: dict[str, Any]) -> str:
    """The page. Every text is escaped by the template engine; an unknown name in the template is an error.

    Texts as sources have them may hold what UTF-8 cannot (half a surrogate pair): the page shows it as an escape.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "size": size_in_words}
    environment.globals["style"] = (FOLDER / "browse.css").read_text(encoding="utf-8")
    return storable(environment.get_template("browse.html.j2").render(data))
