"""The ``report`` step: one HTML file with everything worth looking at, which needs nothing beside it."""

from __future__ import annotations

from typing import Any

from infra.store.commit import entry
from tasks.context import StepContext
from tasks.report import making, results
from tasks.report.html import count, render
from tasks.report.read import Run
from tasks.report.samples import source_samples

REPORT = "report.html"


def run(context: StepContext) -> None:
    """Reads what all other steps made and writes ``report.html``."""
    page = render(contents(context)).encode()
    context.store().put(REPORT, page)
    facts = {"headline": f"open {context.store().url(REPORT)}", "bytes": len(page)}
    context.finish(files=[entry(REPORT, page)], facts=facts)


def contents(context: StepContext) -> dict[str, Any]:
    """What the template shows; each piece is made by one function, and empty where the run has nothing of it."""
    run = Run(context)
    pieces: list[tuple[str, Any]] = [
        ("cards", _cards),
        ("drawings", results.drawings),
        ("captions", results.captions),
        ("choices", results.choices),
        ("replies", results.replies),
        ("losses", results.losses),
        ("sources", source_samples),
        ("ledger", making.ledger),
        ("colours", making.colours),
        ("image_tokenizer", making.image_tokenizer),
        ("text_tokenizer", making.text_tokenizer),
        ("mixture", making.mixture),
        ("pretrain", lambda r: making.training(r, "pretrain")),
        ("finetune", lambda r: making.training(r, "finetune")),
        ("export", lambda r: r.facts("export")),
        ("times", making.times),
        ("steps", making.steps),
    ]
    data: dict[str, Any] = {"name": run.recipe.name, "recipe": run.recipe.to_yaml(), "lede": _lede(run)}
    data |= {"question": run.recipe.evaluation.question, "request": run.recipe.evaluation.request.format(name="…")}
    data["twemoji"] = any(s.type.startswith("emoji-") for s in run.recipe.sources)
    for number, (name, make) in enumerate(pieces):
        data[name] = make(run)
        context.progress.update(number + 1, len(pieces), "sections")
    return data


def _cards(run: Run) -> list[dict[str, str]]:
    cards = results.cards(run)
    trained = run.facts("pretrain")
    config, plan = run.recipe.model, run.plan
    if "parameters" in trained:
        note = f"{config.layers} layers of width {config.dim}, {config.norm}-norm"
        cards.append({"value": count(trained["parameters"]), "label": "parameters", "note": note})
    tokens = sum(n for stage in plan.stages for by in stage.tokens.values() for n in by.values())
    images = sum(by.get("image", 0) for stage in plan.stages for by in stage.tokens.values())
    note = f"in {len(plan.stages)} stages, {images / max(1, tokens):.0%} of them image"
    cards.append({"value": count(tokens), "label": "tokens of pre-training", "note": note})
    psnr = run.facts("image-tokenizer").get("psnr")
    if psnr is not None:
        cards.append({"value": f"{psnr:.1f} dB", "label": "PSNR of reconstructions", "note": "held-out pictures"})
    fill = [stage.fill for stage in plan.stages]
    cards.append(
        {"value": f"{min(fill):.2%}", "label": "packing fill", "note": "of the least filled stage; no picture is cut"}
    )
    return cards


def _lede(run: Run) -> str:
    kinds = {
        "pairs": "picture-text pairs",
        "text": "text",
        "interleaved": "interleaved documents",
        "messages": "conversations",
    }
    used = [kinds[k] for k in kinds if any(s.kind == k for s in run.recipe.sources)]
    listed = ", ".join(used[:-1]) + (" and " if len(used) > 1 else "") + used[-1]
    return (
        f"An early-fusion model of text and pictures, made in one run from {listed}: both tokenizers, "
        "the mixture, pre-training and alignment."
    )
