"""The report's second half: what the model was made from, how, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infra.store.commit import PARTS
from infra.store.manifest import Rows
from infra.store.plan import PackedStore
from infra.store.samples import SAMPLES
from infra.store.tables import read_table
from tasks.report import figures
from tasks.report.figures import Bands, Line
from tasks.report.html import png_uri, uri
from tasks.report.read import Run, in_order
from tasks.steps import BY_NAME
from tasks.train import fertility
from tasks.train.curves import training_plots
from tasks.train.drawings import course
from tasks.train.history import History

CODES_READ = 20_000_000
"""Codes counted for the codebook's use, at most."""
SHEETS_SHOWN = 6
"""Of the sheets that a training drew, at most."""


def ledger(run: Run) -> list[dict[str, Any]]:
    """A line a step and source: in = out + filtered + duplicate + quarantined + removed."""
    lines = []
    for step, manifest in run.manifests.items():
        for source, rows in in_order(run, manifest.rows).items():
            if rows == Rows():
                continue
            gone = {k: getattr(rows, k) for k in ("filtered", "duplicate", "quarantined", "removed")}
            lines.append(
                {"step": step, "source": source, "in": rows.entered, "out": rows.out, "balance": rows.balance, **gone}
            )
    return lines


def colours(run: Run) -> dict[str, str]:
    """Each source's colour, the same throughout the report."""
    return {s.name: figures.SOURCES[i % len(figures.SOURCES)] for i, s in enumerate(run.recipe.sources)}


def image_tokenizer(run: Run) -> dict[str, Any]:
    """Reconstructions, use of the codebook, training."""
    config, facts, lines = run.recipe.image_tokenizer, run.facts("image-tokenizer"), run.metrics("image-tokenizer")
    counts = code_counts(run)
    panels = [figures.codebook(counts)] if sum(counts) else []
    for key, title, label in (
        ("psnr", "Reconstruction while training", "PSNR, dB"),
        ("perplexity", "Codebook while training", "perplexity, codes"),
    ):
        points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), int | float)]
        if len(points) > 1:
            x, y = zip(*points, strict=True)
            panels.append(figures.curves(title, [Line("", x, y, figures.IMAGE, noisy=True)], y_label=label))
    total = sum(counts)
    used = sum(c > 0 for c in counts)
    entropy = -sum(c / total * float(np.log(c / total)) for c in counts if c) if total else 0.0
    sheet = run.file("image-tokenizer", "reconstructions.png")
    return {
        "config": config,
        "facts": {k: facts[k] for k in ("psnr", "ssim", "l1") if k in facts},
        "parameters": facts.get("parameters"),
        "sheet": png_uri(sheet) if sheet else None,
        "measured_on": facts.get("measured_on", "held-out"),
        "panels": panels,
        "used": used,
        "perplexity": float(np.exp(entropy)) if total else None,
        "counted": total,
    }


def code_counts(run: Run) -> list[int]:
    """How often each code occurs in the sample store; on large stores in its first parts."""
    counts = np.zeros(run.recipe.vocabulary.image_codes, np.int64)
    store = run.context.store("encode")
    for part in run.manifests["encode"].parts:
        name = f"{PARTS}/{part}.parquet"
        table = read_table(store.get(name), SAMPLES, store.url(name), ["images"])
        codes = [image["codes"] for images in table["images"].to_pylist() for image in images]
        counts += np.bincount(np.frombuffer(b"".join(codes), "<u2"), minlength=len(counts))
        if counts.sum() >= CODES_READ:
            break
    return [int(c) for c in counts]


def text_tokenizer(run: Run) -> dict[str, Any]:
    """Pieces, and how many tokens texts need, by source, by language and for code."""
    facts = run.facts("text-tokenizer")
    measured = facts.get("fertility", {})
    sources = in_order(run, fertility.by_source(measured))
    languages = fertility.by_language(measured, run.recipe.text_tokenizer.code)
    tables = [_costs(by, groups) for by, groups in (("source", sources), ("language", languages)) if groups]
    return {
        "pieces": facts.get("pieces"),
        "imported": facts.get("imported"),
        "examples": facts.get("examples", []),
        "tables": tables,
    }


def _costs(by: str, groups: Mapping[str, fertility.Sums]) -> dict[str, Any]:
    rows = {name: {**sums, **fertility.ratios(sums)} for name, sums in groups.items()}
    return {"by": by, "rows": rows, "most": max(row["tokens_per_character"] or 0 for row in rows.values()) or 1}


def mixture(run: Run) -> dict[str, Any]:
    """Stages and fine-tuning as shares of tokens by source and by modality; quotas and what became of them; packing."""
    plan = run.plan
    packed = [*plan.stages, *plan.finetune]
    held = list(plan.held_out.values())
    return {
        "bars": [_bar(run, store) for store in packed],
        "packed": [*packed, *held],
        "quotas": [
            {
                "stage": store.name,
                "stream": i.stream,
                "quota": i.quota,
                "counted": i.counted,
                "passes": (i.stop - i.start) / max(1, i.per_pass),
            }
            | {"kind": store.kind}
            for store in packed
            for i in store.intervals
        ],
        "length": plan.sequence_length,
        "cut_pictures": sum(s.cut_pictures for s in [*packed, *held]),
    }


def _bar(run: Run, store: PackedStore) -> dict[str, Any]:
    by_source = {source: sum(by.values()) for source, by in in_order(run, store.tokens).items()}
    total = max(1, sum(by_source.values()))
    modality = {m: sum(by.get(m, 0) for by in store.tokens.values()) for m in ("text", "image", "control")}
    paint = colours(run)
    return {
        "name": store.name,
        "kind": store.kind,
        "tokens": total,
        "sources": [
            {"name": s, "share": n / total, "colour": paint.get(s, figures.GREY)} for s, n in by_source.items()
        ],
        "modalities": [
            {"name": m, "share": n / total, "colour": c}
            for (m, n), c in zip(modality.items(), (figures.TEXT, figures.IMAGE, figures.CONTROL), strict=True)
        ],
        "image_share": store.image_share,
    }


def training(run: Run, step: str) -> dict[str, Any] | None:
    """Curves of a training, as they were to be seen while it ran."""
    lines, facts = run.metrics(step), run.facts(step)
    if not lines:
        return None
    bands = Bands(stretches(lines))
    panels = [
        figures.curves(plot.title, plot.lines, y_label=plot.y_label, log=plot.log, bands=bands)
        for plot in training_plots(History(lines), colours(run))
    ]
    spikes = [line["step"] for line in lines if "spike" in line]
    return {
        "panels": panels,
        "facts": facts,
        "spikes": spikes,
        "steps": lines[-1]["step"],
        "strip": _strip(run, step),
    }


def _strip(run: Run, step: str) -> dict[str, Any] | None:
    """What a training drew for held-out captions as it went on, a row a caption; None where it drew nothing."""
    steps, captions = course(run.context.store(step), SHEETS_SHOWN)
    if not captions:
        return None
    rows = [{"words": c.words, "original": uri(c.original), "drawn": [uri(p) for p in c.drawn]} for c in captions]
    return {"steps": steps, "rows": rows}


def stretches(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """First and last step of each stage, in order."""
    found: dict[str, tuple[float, float]] = {}
    for line in lines:
        start, _ = found.get(line["stage"], (line["step"], 0))
        found[line["stage"]] = (start, line["step"])
    return found


def times(run: Run) -> dict[str, Any]:
    """When each step's jobs ran and how long, and the whole."""
    jobs = run.jobs
    if not jobs:
        return {"rows": [], "total": 0.0, "working": 0.0}
    by_step: dict[str, float] = {}
    for job in jobs:
        by_step[job.step] = by_step.get(job.step, 0.0) + job.seconds
    longest = max(by_step.values())
    rows = [
        {"step": step, "seconds": seconds, "share": seconds / longest, "about": BY_NAME[step].about}
        | {"attempts": sum(j.step == step for j in jobs)}
        for step, seconds in by_step.items()
    ]
    return {"rows": rows, "working": sum(by_step.values())}


def steps(run: Run) -> list[dict[str, Any]]:
    """Each step's fingerprint, parts, files and size: where everything is."""
    found = []
    for step, manifest in run.manifests.items():
        made = [f for part in run.parts(step) for f in part.files] + manifest.files
        found.append(
            {
                "step": step,
                "about": BY_NAME[step].about,
                "fingerprint": manifest.fingerprint,
                "parts": len(manifest.parts),
            }
            | {"files": len(made), "bytes": sum(f.bytes for f in made)}
        )
    return found
