"""How full sequences become, what is cut, and how fast they are laid out and written; TRL's packing beside ours.

    python -m benchmarks.packing [--json] [--documents N] [--sequences N]

Documents have the real lengths of ``benchmarks/lengths.py`` in the paper's proportions; a sequence is 4,096 tokens.

- ``placed_per_second``, ``placed_fill``: ``--documents`` documents in the recipe's windows on one core, lengths alone:
  long ones cut, best fit, and what it leaves filled up.
- ``fill``, cuts, ``written_mb_per_second``: the step ``mix`` over ``--sequences`` sequences' worth of made-up ids, in
  this process; all is counted from the written sequences, and megabytes are those of the files of sequences.
- ``laid_out_documents_per_second``: the step's work items of the layout, reading and writing their tables included.
- TRL's ``pack_dataset`` (``bfd_split``, which loses no token) gets the same documents as lists of ids, with its own
  batches of 1,000 and with ours; concat-and-chunk gets them in shuffled order.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import emit, machine_line, median
from benchmarks.lengths import LENGTH, PICTURE, WEIGHTS, Shape, draw, ids_of, real_shapes, shares
from benchmarks.packers import concatenated, cut_pictures, trl
from infra.store.commit import load_parts, load_step
from infra.store.documents import DOCUMENTS
from infra.store.manifest import Rows
from infra.store.plan import load_plan
from infra.store.sequences import SequenceReader
from infra.store.tables import write_table
from model.vocabulary import PAD
from tasks.context import StepContext
from tasks.mix.bestfit import best_fit
from tasks.mix.config import MixConfig
from tasks.mix.cut import Uses, cut_all
from tasks.mix.fill import fill_rooms
from tasks.mix.run import run
from tasks.pool import PartOutput, run_items
from tasks.recipe import parse_recipe

ROUNDS = 5
PART = 2000
"""Documents a part of the document store."""
Integers = npt.NDArray[np.int64]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000, help="placed for the speed of best fit")
    parser.add_argument("--sequences", type=int, default=8192, help="written, and packed by the peers")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    print(machine_line("trl", "datasets"))
    shapes = real_shapes()
    for name, found in shapes.items():
        sizes = np.array([s.tokens for s in found])
        print(f"{name}: {len(found):,} documents, {sizes.mean():,.0f} tokens on average, longest {sizes.max():,}")
    rng = np.random.default_rng(0)
    figures = placed(shapes, arguments.documents, rng)
    chosen = {
        name: draw(found, share * arguments.sequences * LENGTH * 1.02, rng)
        for (name, found), share in zip(shapes.items(), shares().values(), strict=True)
    }
    with tempfile.TemporaryDirectory() as folder:
        figures |= ours(chosen, arguments.sequences, Path(folder))
    documents = [ids_of(shape, rng) for found in chosen.values() for shape in found]
    rng.shuffle(documents)  # type: ignore[arg-type]  # a list of arrays is shuffled as any list
    figures |= concatenated(documents) | trl(documents)
    emit(figures, arguments.json)


def placed(shapes: dict[str, list[Shape]], count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Documents a second that are placed window by window, as the layout does it, and how full the sequences get."""
    per_token = {name: share / np.mean([s.tokens for s in shapes[name]]) for name, share in shares().items()}
    chosen = [
        shapes[name][n]
        for name, each in per_token.items()
        for n in rng.integers(len(shapes[name]), size=int(count * each / sum(per_token.values())))
    ]
    rng.shuffle(chosen)  # type: ignore[arg-type]  # a list is shuffled as any array
    window = MixConfig.model_fields["window"].default
    windows = [
        uses_of([chosen[k] for k in part]) for part in np.array_split(np.arange(len(chosen)), -(-count // window))
    ]
    seconds, sequences = [], 0
    for _ in range(ROUNDS):
        begun, sequences = time.process_time(), 0
        for uses, pictures_M in windows:
            pieces = cut_all(uses, pictures_M, LENGTH)
            sequences += fill_rooms(pieces, uses.length_K, *best_fit(pieces.length_P, LENGTH), LENGTH)[3]
        seconds.append(time.process_time() - begun)
    print(f"{len(chosen):,} documents, {len(windows)} windows: {median(seconds):.3g} s")
    return {
        "placed_per_second": len(chosen) / median(seconds),
        "placed_fill": sum(shape.tokens for shape in chosen) / (sequences * LENGTH),
    }


def uses_of(shapes: Sequence[Shape]) -> tuple[Uses, Integers]:
    """Documents as the layout has them, and where the pictures of those longer than a sequence begin."""
    lengths = np.array([shape.tokens for shape in shapes], np.int64)
    begins = [shape.pictures for shape in shapes]
    images = np.array([PICTURE * len(b) for b in begins], np.int64)
    known = [b if long else [] for b, long in zip(begins, (lengths > LENGTH).tolist(), strict=True)]
    counts = np.array([len(b) for b in known], np.int64)
    none = np.zeros(len(shapes), np.int64)
    uses = Uses(none, none, none, none, lengths, images, counts, np.cumsum(counts) - counts)
    return uses, np.array([place for b in known for place in b], np.int64)


class _Part:
    def __init__(self, source: str, number: int, shapes: Sequence[Shape]) -> None:
        self.source, self.number, self.shapes = source, number, shapes
        self.part = f"{source}-{number:06d}"


class _Tokenized:
    """Writes a part of a document store, as the step ``tokenize`` would."""

    def __init__(self, context: StepContext) -> None:
        pass

    def process(self, item: _Part) -> PartOutput:
        rng = np.random.default_rng([item.number, len(item.source)])
        rows = [self._row(shape, item.source, rng) for shape in item.shapes]
        data = write_table(rows, DOCUMENTS)
        return PartOutput(
            item.part, item.source, {f"{item.part}.parquet": data}, Rows(entered=len(rows), out=len(rows))
        )

    def _row(self, shape: Shape, kind: str, rng: np.random.Generator) -> dict[str, Any]:
        ids = ids_of(shape, rng)
        pictures = sum(n < 0 for n in shape.pieces) * PICTURE
        row = {"sample_id": rng.bytes(16), "kind": kind, "category": "", "held_out": False, "loss": b""}
        row |= {
            "lengths": [len(ids)],
            "image_tokens": pictures,
            "picture": b"",
            "captions": [],
            "tokens": ids.tobytes(),
        }
        if kind == "pairs":
            row |= {"picture": ids[1 : 1 + PICTURE].tobytes(), "captions": [ids[1 + PICTURE : -1].tobytes()]}
            row["tokens"] = b""
        return row


def ours(chosen: dict[str, list[Shape]], sequences: int, folder: Path) -> dict[str, Any]:
    """The step ``mix`` over a document store of these documents, each used once at most."""
    recipe = parse_recipe(
        {
            "name": "packing",
            "sources": [{"name": name, "type": "x", "kind": name} for name in chosen],
            "mix": {
                "tokens": sequences * LENGTH,
                "sequence_length": LENGTH,
                "stages": [{"name": "one", "share": 1, "weights": WEIGHTS}],
                "file_sequences": 4096,
            },
            "finetune_mix": {"sources": []},
        }
    )
    prints = {name: f"{name}-0123" for name in ("encode", "tokenize", "mix")} | {"text-tokenizer": "t"}
    tokenized = StepContext(recipe, str(folder), "tokenize", prints=prints)
    parts = [
        _Part(name, number, found[first : first + PART])
        for name, found in chosen.items()
        for number, first in enumerate(range(0, len(found), PART))
    ]
    tokenized.finish(parts=run_items(tokenized, parts, _Tokenized, workers=0))
    context = StepContext(recipe, str(folder), "mix", prints=prints)
    timer = _Timer()
    timer.watch("tasks.mix.write:SequenceWriter", "tasks.mix.layout:LayoutMaker", "tasks.mix.index:Indexer")
    run(context, workers=0)
    timer.unwatch()
    stage = load_plan(context.store()).stages[0]
    reader = SequenceReader(context.store(), stage.folder)
    tokens = np.stack([reader.sequence(n)[0] for n in range(len(reader))]).reshape(-1)
    names = load_step(context.store())
    assert names is not None
    files = [f for m in load_parts(context.store(), names.parts) for f in m.files if "/seq-" in f.name]
    spans = [row for n in range(reader.info.files) for row in reader.spans(n).to_pylist()]
    lengths = {part.part: [shape.tokens for shape in part.shapes] for part in parts}
    pieces: dict[tuple[str, int], int] = {}
    for span in spans:
        pieces[span["part"], span["row"]] = pieces.get((span["part"], span["row"]), 0) + 1
    cut = [use for use, count in pieces.items() if count > 1]
    fitting = sum(lengths[part][row] <= LENGTH for part, row in cut)
    size = sum(f.bytes for f in files)
    return {
        "fill": float((tokens != PAD).mean()),
        "cut_pictures": cut_pictures(tokens),
        "cut_documents": fitting,
        "split_long_documents": len(cut),
        "written_mb_per_second": size / 1e6 / timer.seconds["SequenceWriter"],
        "indexed_documents_per_second": sum(len(f) for f in chosen.values()) / timer.seconds["Indexer"],
        "laid_out_documents_per_second": stage.documents / timer.seconds["LayoutMaker"],
    }


class _Timer:
    """Adds up the processor time that workers' ``process`` takes, their commit not included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._undo: list[tuple[Any, Any]] = []

    def watch(self, *paths: str) -> None:
        import importlib

        for path in paths:
            module, _, name = path.partition(":")
            cls = getattr(importlib.import_module(module), name)
            self._undo.append((cls, cls.process))
            cls.process = self._timed(cls.process, name)

    def unwatch(self) -> None:
        for cls, process in self._undo:
            cls.process = process

    def _timed(self, process: Any, name: str) -> Any:
        def timed(worker: Any, item: Any) -> Any:
            begun = time.process_time()
            found = process(worker, item)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begun
            return found

        return timed


if __name__ == "__main__":
    main()
