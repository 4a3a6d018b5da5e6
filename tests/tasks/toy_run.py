"""A finished run at toy size, made without Ray: what evaluation, report, inspection and generation read.

Everything but the trainings and the export is the real code; those are done here in the shortest way, into the real
formats: 24 coloured shapes, 4x4 codes each, and a transformer that learns them by heart in a few seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from infra.storage import Storage
from infra.store.commit import PARTS, entry, load_part
from infra.store.tables import read_table
from model.data.loader import make_batch
from model.image_tokenizer.load import save_image_tokenizer
from model.image_tokenizer.quantize import kmeans
from model.image_tokenizer.vqgan import VQModel, normalise
from model.training.watch.config import DrawingsConfig, WatchConfig
from model.transformer.load import save_transformer
from model.transformer.model import Transformer
from model.vocabulary import PAD
from tasks.context import StepContext
from tasks.documents import run as documents
from tasks.documents.captions import realise
from tasks.encode import run as encode
from tasks.encode.decode import open_image
from tasks.encode.transforms import transform
from tasks.mix import run as mix
from tasks.recipe import Recipe, parse_recipe
from tasks.scan import run as scan
from tasks.scan import select
from tasks.sheets import png
from tasks.sources.base import BadRow, BaseSource, RawImage, RawSample, Segment, WorkItem
from tasks.steps import NAMES
from tasks.train import text_tokenizer
from tasks.train.drawings import Sheets, asked_for, sheet_files

COLOURS = {"red": "#d62728", "blue": "#1f77b4", "green": "#2ca02c", "black": "#222222"}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
LENGTH = 96


def picture(colour: str, shape: str, size: int = 24) -> bytes:
    image = Image.new("RGB", (size, size), "white")
    draw, ink, a, b = ImageDraw.Draw(image), COLOURS[colour], size // 6, size - size // 6
    if shape == "circle":
        draw.ellipse((a, a, b, b), ink)
    elif shape == "square":
        draw.rectangle((a, a, b, b), ink)
    elif shape == "triangle":
        draw.polygon([(size // 2, a), (b, b), (a, b)], ink)
    elif shape == "cross":
        draw.line((a, a, b, b), ink, size // 6)
        draw.line((a, b, b, a), ink, size // 6)
    elif shape == "ring":
        draw.ellipse((a, a, b, b), None, ink, size // 8)
    else:
        draw.rectangle((a, size // 2 - 2, b, size // 2 + 2), ink)
    return png(image)


class ToySource(BaseSource):
    """Shapes with their names, in the form that the source's kind asks for."""

    def digest(self) -> str:
        return hashlib.sha256(self.config.name.encode()).hexdigest()

    def work_items(self, target: int) -> Iterator[WorkItem]:
        for index in range(2):
            yield WorkItem(self.config.name, index, {"half": index})

    def read(self, item: WorkItem) -> Iterator[RawSample | BadRow]:
        names = [(c, s) for s in SHAPES for c in COLOURS][item.locator["half"] :: 2]
        for row, (colour, shape) in enumerate(names):
            key, file = f"{colour}-{shape}", f"half-{item.locator['half']}"
            raw, name = RawImage(f"{key}.png", picture(colour, shape)), f"{colour} {shape}"
            sample = RawSample(key, file, row, images=(raw,), licence="CC0")
            if self.config.kind == "pairs":
                yield replace(sample, captions=(name, f"{shape} rot" if colour == "red" else name))
            elif self.config.kind == "text":
                yield replace(sample, images=(), segments=(Segment(f"A {shape} can be {colour}. It has a shape.\n"),))
            elif self.config.kind == "interleaved":
                yield replace(sample, segments=(Segment(f"Here is a {name}: "), Segment(image=0), Segment(" Look.")))
            else:
                yield from _conversations(sample, name)
        if self.config.kind == "pairs" and item.index == 0:
            yield RawSample("bad", "half-0", 98, captions=("a bad one",), images=(RawImage("bad.png", b"nonsense"),))
            yield BadRow("half-0", 99, "bad-json", "line 99 is not JSON")


def _conversations(sample: RawSample, name: str) -> Iterator[RawSample]:
    user, assistant = (lambda t: Segment(t, role="user")), (lambda t: Segment(t, role="assistant"))
    shown, drawn = Segment(image=0, role="user"), Segment(image=0, role="assistant")
    yield replace(
        sample,
        key=f"what:{sample.key}",
        category="visual-chat",
        segments=(shown, user("What is this?"), assistant(name)),
    )
    yield replace(
        sample, key=f"draw:{sample.key}", category="image-generation", segments=(user(f"Draw: {name}"), drawn)
    )


RECIPE: dict[str, Any] = {
    "name": "toy",
    "vocabulary": {"image_codes": 32, "text_start": 44, "size": 44 + 300},
    "sources": [
        {"name": "shapes", "type": f"{__name__}:ToySource", "kind": "pairs"},
        {"name": "words", "type": f"{__name__}:ToySource", "kind": "text"},
        {"name": "stories", "type": f"{__name__}:ToySource", "kind": "interleaved"},
        {"name": "talks", "type": f"{__name__}:ToySource", "kind": "messages"},
    ],
    "scan": {"held_out": 0.25},
    "image_tokenizer": {
        **{"resolution": 16, "codes": 32, "channels": 32, "multipliers": [1, 1, 1], "residual_blocks": 1},
        **{"z_channels": 32, "embed_dim": 8},
    },
    "mix": {
        "tokens": 4000,
        "sequence_length": LENGTH,
        "stages": [
            {"name": "stage-1", "share": 0.8, "weights": {"shapes": 0.6, "words": 0.2, "stories": 0.2}},
            {"name": "stage-2", "share": 0.2, "earlier": 0.5, "weights": {"talks": 1.0}},
        ],
    },
    "finetune_mix": {"sources": ["talks"]},
    "model": {"dim": 48, "layers": 2, "heads": 4, "ffn": 96, "dropout": 0.0},
    "generation": {"max_text_tokens": 20},
    "evaluation": {"pictures": 20, "choices": 4, "drawings": 8, "captions": 4, "losses": 4},
}


EXPORTED = {"max_abs_diff": 3.1e-6, "equal_codes": 1.0, "generated": {"prompt": "A red", "text": " circle"}}


def make(workdir: Path, until: str = "report", raw: dict[str, Any] = RECIPE) -> Recipe:
    """Makes the run's steps up to and with ``until``."""
    recipe = parse_recipe({"folder": str(workdir), **raw})
    store = Storage(workdir)
    store.put("recipe.yaml", recipe.to_yaml().encode())
    makers = {
        "scan": lambda c: scan.run(c, workers=0),
        "select": select.run,
        "image-tokenizer": _image_tokenizer,
        "encode": lambda c: encode.run(c, workers=0),
        "text-tokenizer": text_tokenizer.run,
        "tokenize": lambda c: documents.run(c, workers=0),
        "mix": lambda c: mix.run(c, workers=0),
        "pretrain": _pretrain,
        "finetune": _finetune,
        "evaluate": lambda c: importlib.import_module("tasks.evaluate").run(c, workers=0),
        "export": lambda c: c.finish(facts=EXPORTED),
        "report": lambda c: importlib.import_module("tasks.report.run").run(c),
    }
    for number, step in enumerate(NAMES[: NAMES.index(until) + 1]):
        context = StepContext(recipe, str(workdir), step, f"{step}-job")
        makers[step](context)
        record = {"step": step, "fingerprint": context.fingerprint, "state": "done", "cpus": 2, "host": "h"}
        record |= {"started": 1_000_000.0 + 10 * number, "seconds": 3.0 + number}
        store.put(f"runs/jobs/{step}-{context.fingerprint}-1/submitted", b"")
        store.put(f"runs/jobs/{step}-{context.fingerprint}-1/record.json", json.dumps(record).encode())
    return recipe


def _image_tokenizer(context: StepContext) -> None:
    """Random weights, but a codebook of the latents' own centres: different pictures get different codes."""
    torch.manual_seed(0)
    config = context.recipe.image_tokenizer
    model = VQModel(config).eval()
    pixels = [
        transform("reference-1").crop(open_image(picture(c, s), 10**6), config.resolution)
        for c in COLOURS
        for s in SHAPES
    ]
    with torch.no_grad():
        z = model.latents(normalise(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)))
        z_ND = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        model.quantize.embedding.weight.copy_(kmeans(z_ND, config.codes, 5, torch.Generator().manual_seed(0)))
    files = save_image_tokenizer(context.store(), config, model.state_dict())
    lines = [{"step": i, "l1": 0.3 / (1 + i), "psnr": 10 + i, "codebook_used": min(1, i / 10)} for i in range(1, 20)]
    context.store().put("metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode())
    sheet = png(Image.new("RGB", (64, 32), "#abcdef"))
    context.store().put("reconstructions.png", sheet)
    facts = {"psnr": 21.5, "l1": 0.04, "codebook_used": 0.97, "perplexity": 25.0, "measured_on": "held-out"}
    context.finish(files=[*files, entry("reconstructions.png", sheet)], facts=facts)


def _documents(context: StepContext) -> dict[str, list[tuple[str, int, dict[str, Any]]]]:
    """(part, row number, row) of every document, by source."""
    store, found = context.store("tokenize"), {}
    for part in context.manifest("tokenize").parts:
        rows = read_table(store.get(f"{PARTS}/{part}.parquet"), documents.DOCUMENTS, part).to_pylist()
        found.setdefault(load_part(store, part).source, []).extend((part, i, row) for i, row in enumerate(rows))
    return found


def _pretrain(context: StepContext) -> None:
    model = Transformer(context.recipe.model, context.recipe.vocabulary.size).initialise(0)
    docs = [row for docs in _documents(context).values() for _, _, row in docs if not row["held_out"]]
    _learn(
        context, model, [[realise(r, k, 0) for r in docs] for k in range(2)], steps=120, stage=("stage-1", "stage-2")
    )


def _draw(context: StepContext) -> list[str]:
    """Sheets of arbitrary pictures, as if drawn while training."""
    watch = WatchConfig(drawings=DrawingsConfig(every=40, pictures=3))
    recipe = context.recipe.model_copy(update={"watch": watch})
    asked = asked_for(StepContext(recipe, context.root, context.step, prints=context.fingerprints), "pretrain")
    assert asked is not None
    show, rng = Sheets(asked, context.store(), context.progress), np.random.default_rng(0)
    for step in (40, 80, 120):
        show(step, rng.integers(context.recipe.vocabulary.image_codes, size=(len(asked.prompts), 16)))
    return sheet_files(context.store())


def _finetune(context: StepContext) -> None:
    from model.transformer.load import load_transformer

    model = load_transformer(context.store("pretrain"))
    docs = [row for _, _, row in _documents(context)["talks"] if not row["held_out"]]
    _learn(context, model, [[realise(r, 0, 0) for r in docs]], steps=40, stage=("epoch-0",))


def _learn(
    context: StepContext, model: Transformer, passes: list[list[Any]], steps: int, stage: tuple[str, ...]
) -> None:
    """All documents of a pass, a row each, at every step: enough to know them by heart."""
    batches = []
    for docs in passes:
        width = max(map(len, docs))
        tokens = np.full((len(docs), width), PAD, np.uint16)
        starts = np.zeros(tokens.shape, bool)
        starts[:, 0] = True
        for row, ids in enumerate(docs):
            tokens[row, : len(ids)] = ids
            if len(ids) < width:
                starts[row, len(ids)] = True
        batches.append(make_batch(tokens, starts, None, np.arange(len(docs)), context.recipe.vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    lines = []
    for step in range(steps):
        rate = 1e-2 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate
        batch = batches[step % len(batches)]
        loss = model.loss(model(batch["tokens"], batch["documents"], batch["positions"]), batch["labels"], 1e-5)
        mean = loss.total / len(loss.nll_N)
        optimizer.zero_grad()
        mean.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        image = batch["image"].flatten()[loss.index_N]
        line = {
            "step": step + 1,
            "stage": stage[min(step * len(stage) // steps, len(stage) - 1)],
            "loss": mean.item(),
            "loss_text": float(loss.nll_N[~image].mean()),
            "loss_image": float(loss.nll_N[image].mean()),
            "z2": 1.0,
            "log_z": 1.0,
            "grad_norm": norm,
            "learning_rate": rate,
            "output_norm": 7.0,
            "image_share": float(image.float().mean()),
            "tokens": 100,
            "total_tokens": 100 * (step + 1),
            "tokens_per_s": 1000.0 + step,
        }
        if step % 20 == 19:
            line["held_out"] = {"shapes": {"text": mean.item() + 1, "image": mean.item() + 2}, "words": {"text": 1.0}}
        lines.append(line)
    store = context.store()
    files = save_transformer(store, context.recipe.model, context.recipe.vocabulary.size, model.state_dict())
    store.put("metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode())
    facts = {"steps": steps, "parameters": model.parameter_count(), "tokens": 100 * steps, "tokens_per_s": 1000.0}
    facts |= {"world": 2, "final": lines[-1], "model": context.recipe.model.model_dump(mode="json")}
    drawn = _draw(context) if context.step == "pretrain" else []
    context.finish(files=[entry(n, store.get(n)) for n in [*files, "metrics.jsonl", *drawn]], facts=facts)
