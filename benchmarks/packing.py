"""How full sequences become, what is cut, and how fast they are laid out and written; TRL's packing beside ours.

    python -m benchmarks.packing [--json] [--documents N] [--sequences N]

Lengths are those of real captions, texts, programs and illustrated documents of the shared data under a BPE of 16,000
pieces, drawn again and again until text, pairs and interleaved documents have the paper's shares of 2.9 : 1.5 : 0.4 of
the tokens; a picture is 1,026 tokens, a sequence 4,096.

- ``placed_per_second``: best fit of ``--documents`` documents in the recipe's windows, on one core.
- ``fill``, cuts, ``written_mb_per_second``: the step ``mix`` over ``--sequences`` sequences' worth of made-up ids, in
  this process; all is counted from the written sequences, and megabytes are those of the files of sequences.
- TRL's ``pack_dataset`` (``bfd_split``, which loses no token) gets the same documents as lists of ids, with its own
  batches of 1,000 and with ours; concat-and-chunk gets them in shuffled order.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import SHARED_DATA, emit, machine_line, median
from infra.store.commit import load_parts, load_step
from infra.store.documents import DOCUMENTS
from infra.store.manifest import Rows
from infra.store.plan import load_plan
from infra.store.sequences import SequenceReader
from infra.store.tables import write_table
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.train import train
from model.vocabulary import BOS, EOS, FIRST_IMAGE_CODE, PAD, Vocabulary
from tasks.context import StepContext
from tasks.mix.bestfit import best_fit
from tasks.mix.config import MixConfig
from tasks.mix.run import run
from tasks.pool import PartOutput, run_items
from tasks.recipe import parse_recipe

LENGTH, PICTURE = 4096, 1026
WEIGHTS = {"text": 2.9, "pairs": 1.5, "interleaved": 0.4}
ROUNDS = 5
PART = 2000
"""Documents a part of the document store."""
V = Vocabulary()
Ids = npt.NDArray[np.uint16]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """A real document, as far as packing sees it: tokens of text, with the number -1 where a picture stands."""

    pieces: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return 2 + sum(PICTURE if n < 0 else n for n in self.pieces)


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
    figures: dict[str, Any] = {"placed_per_second": placed_per_second(shapes, arguments.documents, rng)}
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


def shares() -> dict[str, float]:
    """The paper's shares of tokens."""
    return {name: weight / sum(WEIGHTS.values()) for name, weight in WEIGHTS.items()}


def real_shapes() -> dict[str, list[Shape]]:
    """The shared data's documents by source, in tokens."""
    if not SHARED_DATA.is_dir():
        raise SystemExit(f"{SHARED_DATA}: no such folder. This benchmark wants the real lengths of its documents.")
    files = [p for folder in ("text", "code") for p in sorted((SHARED_DATA / folder).glob("*.jsonl"))]
    texts = [line["text"] for path in files for line in _json_lines(path)]
    pairs = [caption for line in _json_lines(SHARED_DATA / "pairs/pairs.jsonl") for caption in line["captions"]]
    pages = [line["segments"] for line in _json_lines(SHARED_DATA / "interleaved/docs.jsonl")]
    sample = [text[:20_000] for text in texts[::4]] + pairs
    tokenizer = train(sample, TextTokenizerConfig(), Vocabulary(image_codes=64, text_start=72, size=72 + 16_000))

    def size(text: str | None) -> int:
        return len(tokenizer.encode(text or ""))

    return {
        "text": [Shape((size(text),)) for text in texts],
        "pairs": [Shape((-1, size(caption))) for caption in pairs],
        "interleaved": [
            Shape(tuple(-1 if s["type"] == "image" else size(s.get("text")) for s in page)) for page in pages
        ],
    }


def draw(shapes: Sequence[Shape], tokens: float, rng: np.random.Generator) -> list[Shape]:
    """Documents drawn with replacement until they have so many tokens."""
    found: list[Shape] = []
    while tokens > 0:
        found.append(shapes[int(rng.integers(len(shapes)))])
        tokens -= found[-1].tokens
    return found


def ids_of(shape: Shape, rng: np.random.Generator) -> Ids:
    """A document of that shape with ids that mean nothing."""
    pieces = [
        [V.boi, *rng.integers(FIRST_IMAGE_CODE, V.eoi, PICTURE - 2), V.eoi]
        if n < 0
        else rng.integers(V.text_start, V.size, n)
        for n in shape.pieces
    ]
    return np.concatenate([[BOS], *pieces, [EOS]]).astype(np.uint16)


def placed_per_second(shapes: dict[str, list[Shape]], count: int, rng: np.random.Generator) -> float:
    """Documents a second that best fit places in windows; those longer than a sequence as their pieces."""
    mean = {name: np.mean([s.tokens for s in found]) for name, found in shapes.items()}
    parts = {name: share / mean[name] for name, share in shares().items()}
    lengths = []
    for name, found in shapes.items():
        sizes = np.array([s.tokens for s in found], np.int64)
        lengths.append(rng.choice(sizes, int(count * parts[name] / sum(parts.values()))))
    whole = np.concatenate(lengths)
    rng.shuffle(whole)
    documents = len(whole)
    pieces = np.concatenate([whole[whole <= LENGTH], np.full(int((whole // LENGTH).sum()), LENGTH)])
    rests = whole[whole > LENGTH] % LENGTH
    pieces = rng.permutation(np.concatenate([pieces[: len(pieces)], rests[rests > 0]]))
    window = MixConfig.model_fields["window"].default
    windows = np.array_split(pieces, max(1, -(-len(pieces) // window)))
    seconds = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for lengths_N in windows:
            best_fit(lengths_N, LENGTH)
        seconds.append(time.process_time() - begun)
    print(f"{documents:,} documents in {len(pieces):,} pieces, {len(windows)} windows: {median(seconds):.3g} s")
    return documents / median(seconds)


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


def cut_pictures(tokens_F: Ids) -> int:
    """Pictures that do not lie whole in one sequence, of sequences one after another."""
    begins = np.flatnonzero(tokens_F == V.boi)
    ends = begins + PICTURE - 1
    inside = ends < len(tokens_F)
    whole = inside & (begins // LENGTH == ends // LENGTH)
    whole[inside] &= tokens_F[ends[inside]] == V.eoi
    return int((~whole).sum())


def concatenated(documents: Sequence[Ids]) -> dict[str, Any]:
    """All documents in a row, cut every 4,096 tokens."""
    tokens = np.concatenate(documents)
    stops = np.cumsum([len(d) for d in documents])
    starts = stops - [len(d) for d in documents]
    fitting = (stops - starts) <= LENGTH
    cut = starts // LENGTH != (stops - 1) // LENGTH
    pictures = int((tokens == V.boi).sum())
    return {
        "concat_cut_pictures": cut_pictures(tokens),
        "concat_cut_pictures_share": cut_pictures(tokens) / pictures,
        "concat_cut_documents": int((fitting & cut).sum()),
        "pictures": pictures,
        "documents": len(documents),
    }


def trl(documents: Sequence[Ids]) -> dict[str, Any]:
    """TRL's best-fit packing of the same documents."""
    try:
        from datasets import Dataset, disable_caching, disable_progress_bars
        from trl.data_utils import pack_dataset
    except ImportError as e:
        print(f"TRL is left out ({e}): pip install -e '.[bench]' and pip install --no-deps trl bring it")
        return {}
    disable_caching()
    disable_progress_bars()
    import pyarrow as pa

    offsets = np.cumsum([0, *(len(d) for d in documents)])
    lists = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(np.concatenate(documents).astype(np.int32))
    )
    dataset = Dataset(pa.table({"input_ids": lists}))
    found: dict[str, Any] = {}
    for name, batch in (("trl", 1000), ("trl_window", MixConfig.model_fields["window"].default)):
        seconds = []
        for _ in range(3):
            begun = time.process_time()
            packed = pack_dataset(dataset, LENGTH, "bfd_split", map_kwargs={"batch_size": batch})
            seconds.append(time.process_time() - begun)
        column = packed.data.column("input_ids").combine_chunks()
        lengths = column.value_lengths().to_numpy()
        tokens = np.full((len(lengths), LENGTH), PAD, np.uint16)
        tokens[np.arange(LENGTH) < lengths[:, None]] = column.flatten().to_numpy()
        found |= {
            f"{name}_fill": float(lengths.sum() / (len(lengths) * LENGTH)),
            f"{name}_cut_pictures": cut_pictures(tokens.reshape(-1)),
            f"{name}_packed_per_second": len(documents) / median(seconds),
        }
    return found


def _json_lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as f:  # splitlines() would also cut at U+2028
        return [json.loads(line) for line in f]


if __name__ == "__main__":
    main()
