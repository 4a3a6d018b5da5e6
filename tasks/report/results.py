"""The report's first half: what the model can do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tasks.report import figures
from tasks.report.html import uri
from tasks.report.read import Run, in_order

WAYS = (
    ("pretrain", "document", "pre-trained"),
    ("finetune", "document", "fine-tuned"),
    ("finetune", "chat", "fine-tuned, in chat"),
)
QUESTIONS = (
    ("name", "The right name for a picture", "log p(name | picture)"),
    ("name_prior", "… and without the prior of names", "log p(name | picture) − log p(name)"),
    ("picture", "The right picture for a name", "log p(picture | name)"),
    ("picture_prior", "… and without the prior of pictures", "log p(picture | name) − log p(picture)"),
)
SHOWN_EXAMPLES = 4
"""Choices shown in full, of either kind."""
CAPTION_LENGTH = 80


def drawings(run: Run) -> list[dict[str, Any]]:
    """Drawings by name, trained-on and held-out ones: picture, what was asked, what is nearest."""
    found = []
    for split in (False, True):
        results = run.measured("drawings", held_out=split)
        if results is None or not results["drawings"]:
            continue
        cells = [
            {
                "picture": uri(tiles[0]),
                "nearest": uri(tiles[1]),
                "asked": uri(tiles[2]),
                "name": drawn["name"],
                "nearest_name": drawn["nearest"],
                "rank": drawn["rank"],
            }
            for tiles, drawn in zip(run.tiles(results), results["drawings"], strict=True)
        ]
        found.append({**results, "cells": cells, "chance": 1 / results["candidates"]})
    return found


def captions(run: Run) -> list[dict[str, Any]]:
    """What the model says that pictures are."""
    found = []
    for split in (False, True):
        results = run.measured("captions", held_out=split)
        if results is None or not results["captions"]:
            continue
        cells = [
            {
                "picture": uri(tiles[0]),
                "name": said["name"],
                "caption": _shorten(said["caption"]),
                "exact": said["name"] == said["caption"],
            }
            for tiles, said in zip(run.tiles(results), results["captions"], strict=True)
        ]
        found.append({**results, "cells": cells})
    return found


def choices(run: Run) -> dict[str, Any] | None:
    """Choice by likelihood: a figure a question, the numbers as a table, and some questions in full."""
    asked = [
        (w, f, label, s, run.measured("choices", weights=w, form=f, held_out=s))
        for w, f, label in WAYS
        for s in (False, True)
    ]
    rows = [
        {"way": label, "held_out": split, "asked": r["asked"], "choices": r["choices"]}
        | {key: r[key] for key, _, _ in QUESTIONS}
        for _, _, label, split, r in asked
        if r is not None and r["asked"]
    ]
    if not rows:
        return None
    chance = rows[0]["name"]["chance"]
    panels = []
    for key, title, what in QUESTIONS:
        bars = [
            figures.Bar(label, [_triple(r[key]) for r in rows if r["way"] == label and r["held_out"] in (False, True)])
            for _, _, label in WAYS
        ]
        series = [("trained-on", figures.ACCENT), ("held-out", figures.PALE)]
        panels.append(figures.shares(title, bars, series, chance, what))
    return {"rows": rows, "panels": panels, "chance": chance, "examples": _examples(run)}


def _examples(run: Run) -> list[dict[str, Any]]:
    """Questions with their answers' scores: half of them names for a picture, half pictures for a name."""
    results = run.measured("choices", weights="finetune", form="chat", held_out=False)
    if results is None or not results["asked"]:
        return []
    shown: list[dict[str, Any]] = []
    for i, (tiles, example) in enumerate(zip(run.tiles(results), results["examples"], strict=True)):
        to_name = i % 2 == 0
        p = softmax(example["name_scores" if to_name else "picture_scores"])
        answers = [
            {"name": name, "picture": uri(tile), "p": p_answer, "right": k == 0, "chosen": p_answer == max(p)}
            for k, (name, tile, p_answer) in enumerate(zip(example["names"], tiles, p, strict=True))
        ]
        shown.append({"to_name": to_name, "asked": answers[0], "answers": sorted(answers, key=lambda a: -a["p"])})
    return shown[: 2 * SHOWN_EXAMPLES]


def replies(run: Run) -> list[dict[str, Any]]:
    """Held-out conversations with the model's answers beside the given ones."""
    results = run.measured("replies")
    if results is None:
        return []
    pictures = [uri(row[0]) for row in run.tiles(results)]

    def shown(pieces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"text": p["text"]} if "text" in p else {"picture": pictures[p["tile"]]} for p in pieces]

    return [
        {"category": c["category"], **{k: shown(c[k]) for k in ("prompt", "reply", "given")}}
        for c in results["conversations"]
    ]


def losses(run: Run) -> list[dict[str, Any]]:
    """Held-out losses by source and modality, before and after fine-tuning."""
    before, after = (run.measured("losses", weights=w) for w in ("pretrain", "finetune"))
    if before is None or after is None:
        return []
    return [
        {
            "source": source,
            "modality": modality,
            "tokens": loss["tokens"],
            "pretrain": loss["loss"],
            "finetune": after["losses"][source][modality]["loss"],
        }
        for source, by in in_order(run, before["losses"]).items()
        for modality, loss in by.items()
    ]


def cards(run: Run) -> list[dict[str, str]]:
    """The figures that come first."""
    found: list[dict[str, str]] = []

    def choice(key: str, label: str) -> None:
        trained = _best(run, key, False)
        if trained is not None:
            lifted, held = _best(run, f"{key}_prior", False), _best(run, f"{key}_prior", True)
            note = f"{trained['chance']:.0%} by chance"
            if lifted is not None:
                note = f"{lifted['share']:.0%} without the prior, {note}"
            if held is not None:
                note += f"; held-out {held['share']:.0%}"
            found.append({"value": f"{trained['share']:.0%}", "label": label, "note": note})

    choice("name", "right name for a picture")
    choice("picture", "right picture for a name")
    drawn = run.measured("drawings", held_out=False)
    if drawn is not None and drawn["drawings"]:
        note = f"nearest, of {drawn['candidates']:,} pictures, to the one asked for"
        found.append({"value": f"{drawn['nearest']} of {drawn['asked']}", "label": "drawings", "note": note})
    said = run.measured("captions", held_out=False)
    if said is not None:
        found.append(
            {
                "value": f"{said['exact'] / max(1, said['asked']):.0%}",
                "label": "named exactly",
                "note": f"of {said['asked']} pictures, in its own words",
            }
        )
    return found


def softmax(scores: Sequence[float]) -> list[float]:
    """Scores in nats as shares."""
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    return [w / sum(weights) for w in weights]


def _best(run: Run, key: str, split: bool) -> dict[str, Any] | None:
    """A question's result for the finished weights, asked as a document: the form that they were trained in longest."""
    results = run.measured("choices", weights="finetune", form="document", held_out=split)
    found: dict[str, Any] | None = results[key] if results is not None and results["asked"] else None
    return found


def _triple(facts: dict[str, Any]) -> tuple[float, float, float]:
    return facts["share"], facts["low"], facts["high"]


def _shorten(text: str) -> str:
    return text if len(text) <= CAPTION_LENGTH else text[:CAPTION_LENGTH].rstrip() + "…"
