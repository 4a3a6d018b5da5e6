"""The ``evaluate`` step: what the trained model can do, measured and shown.

Independent measurements (``tasks/measures.py``) run as work items, each committed as a part; then ``results.json``
gathers them. Everything is asked of pairs that the model was trained on and of held-out ones, which it never saw.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from infra.storage import Storage
from infra.store.commit import PARTS, entry
from tasks.context import StepContext
from tasks.measures import Evaluator, measurements, split_name
from tasks.pool import run_items
from tasks.sheets import Cell, cut, labelled, png


def run(context: StepContext, workers: int | None = None) -> None:
    """Measures and commits; ``workers=0`` measures in this process."""
    store = context.store()
    parts = run_items(context, measurements(context), Evaluator, workers=workers, unit="measurements")
    results = [found for part in parts for found in json.loads(store.get(f"{PARTS}/{part}.results.json"))]
    files = {"results.json": (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode()}
    for found in results:
        if found["kind"] == "drawings":
            files[f"drawings-{split_name(found['held_out'])}.png"] = drawings_sheet(store, found)
    for name, data in files.items():
        store.put(name, data)
    context.finish(parts=parts, files=[entry(n, d) for n, d in sorted(files.items())], facts=headline(results))


def headline(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures that are named first, flat. All are of the fine-tuned model but those that say ``pretrain``."""
    facts: dict[str, Any] = {}
    for found in results:
        split = "held_out" if found["held_out"] else "trained"
        if found["kind"] == "choices" and found["asked"]:
            for key in ("name", "name_prior", "picture", "picture_prior"):
                facts[f"choice_{found['weights']}_{found['form']}_{key}_{split}"] = round(found[key]["share"], 4)
            facts["choice_chance"] = found["name"]["chance"]
        elif found["kind"] == "drawings":
            facts[f"drawings_{split}"], facts[f"drawings_nearest_{split}"] = found["asked"], found["nearest"]
        elif found["kind"] == "captions":
            facts[f"captions_{split}"], facts[f"captions_exact_{split}"] = found["asked"], found["exact"]
        elif found["kind"] == "losses":
            for source, losses in found["losses"].items():
                for modality, loss in losses.items():
                    facts[f"loss_{found['weights']}_{source}_{modality}"] = round(loss["loss"], 4)
    facts["headline"] = _in_words(results)
    return facts


def _in_words(results: Sequence[dict[str, Any]]) -> str:
    """One line for a terminal: what the fine-tuned model knows of its pairs, and what it draws."""
    words = []
    for found in results:
        if found["held_out"]:
            continue
        is_headline = found["kind"] == "choices" and (found["weights"], found["form"]) == ("finetune", "document")
        if is_headline and found["asked"]:
            for key, label in (("name", "name for a picture"), ("picture", "picture for a name")):
                raw, lifted = found[key]["share"], found[f"{key}_prior"]["share"]
                words.append(f"{label} {raw:.0%}, without the prior {lifted:.0%}")
            words.append(f"of {found['asked']} (chance {found['name']['chance']:.0%})")
        elif found["kind"] == "drawings":
            words.append(f"{found['nearest']} of {found['asked']} drawings nearest to what was asked for")
    return ", ".join(words)


def drawings_sheet(store: Storage, found: dict[str, Any]) -> bytes:
    """The drawings with what was asked for and what is nearest, as one PNG for people."""
    rows = cut(store.get(f"{PARTS}/{found['sheet']}"), found["tile"])
    cells = [
        Cell(drawn, [d["name"], "nearest of all" if d["rank"] == 1 else f"nearest: {d['nearest']}"])
        for (drawn, *_), d in zip(rows, found["drawings"], strict=True)
    ]
    which = "held-out" if found["held_out"] else "trained-on"
    title = f"Drawn by name, {which}: {found['nearest']} of {found['asked']} nearest to what was asked for"
    return png(labelled(cells, side=max(96, found["tile"]), columns=10, title=title))
