"""``calumma inspect``: looks inside anything that a run stores, and shows it as a person would want to see it.

Manifests, plans, Parquet parts, sequence files, weights, checkpoints, metrics. Where the tokenizers that a file was
made with lie in the same work folder, ids are shown as text and pictures. Nothing is unpickled. What comes out of a
file is always wrapped in ``Text``: rich would take ``[brackets]`` in a plain string for markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import RenderableType
from rich.json import JSON
from rich.table import Table
from rich.text import Text

from infra.errors import StoreError
from infra.home import whole_name
from infra.storage import Storage
from infra.store.documents import DOCUMENTS
from infra.store.manifest import PartManifest, Rows, StepManifest
from infra.store.plan import Plan, parse_plan
from infra.store.samples import SAMPLES
from infra.store.tables import FORMAT_KEY, read_table
from tasks.inspect_tokens import Readable, show_documents, show_samples, show_sequence, show_sequences
from tasks.mix.show import show_plan

Found = Iterator[RenderableType]
SHOWN_FILES = 20
SHOWN_TENSORS = 400


def inspect(path: Path | str, out: Path | None = None, limit: int = 5, sequence: int | None = None) -> Found:
    """Yields what is in a file or folder, piece by piece, for rich to print.

    Args:
        path: A stored file, or a folder that holds a manifest; on a disk or on ``s3://``.
        out: Where the pictures found are written as one PNG; None: they are only hinted at in the terminal.
        limit: Rows or sequences shown in full.
        sequence: This one alone, by its number in a stage of a mixture, as a training's errors name it; ``path`` is the
            stage's folder or any file in it.

    Raises:
        StoreError: There is nothing there, or nothing that Calumma stores, or no such sequence.
    """
    store, name = _found(whole_name(str(path)))
    readable, suffix = Readable.near(store.url(name), out), PurePosixPath(name).suffix
    if sequence is not None:
        yield from show_sequence(store, sequence, readable)
    elif suffix == ".model" or name.endswith("tokenizer.json"):
        yield from _pieces(store, limit)
    elif suffix == ".json":
        yield from _json(store, name, readable, limit)
    elif suffix == ".jsonl":
        yield from _lines(store, name, limit)
    elif suffix == ".parquet":
        yield from _parquet(store, name, readable, limit)
    elif suffix in (".u16", ".starts", ".loss", ".sums"):
        yield from show_sequences(store, name, readable, limit)
    elif suffix == ".safetensors":
        yield from _tensors(store, name)
    elif suffix == ".pt":
        yield from _checkpoint(store, name)
    else:
        raise StoreError(
            f"{store.url(name)}: not a kind of file that Calumma stores. It reads .json, .jsonl, .parquet, .u16, "
            ".safetensors, .model and .pt."
        )
    yield from readable.finish()


def _found(path: str) -> tuple[Storage, str]:
    """A file's folder and name; of a folder, the file that says what it holds."""
    parent, _, name = path.rpartition("/")
    beside, inside = Storage(parent), Storage(path)
    if beside.exists(name):
        return beside, name
    # A checkpoint's manifest lies beside its folder.
    places = ((inside, "manifest.json"), (inside, "sequences.json"), (beside, f"{name}.json"), (inside, "config.json"))
    for store, held in places:
        if store.exists(held):
            return store, held
    if (inside.local and inside.path().is_dir()) or next(inside.find(), None) is not None:
        raise StoreError(f"{path}: a folder without a manifest. Name a file in it.")
    raise StoreError(f"{path}: no such file. Name a part, a sequence file, a manifest, weights or a checkpoint.")


# -- JSON


def _json(store: Storage, name: str, readable: Readable, limit: int) -> Found:
    raw, where = store.get(name), store.url(name)
    try:
        data = json.loads(raw)
    except ValueError as e:
        raise StoreError(f"{where}: not valid JSON ({e})") from e
    kind = data.get("format", "") if isinstance(data, dict) else ""
    if kind == "calumma-step":
        yield from _manifest(StepManifest.load(raw, where))
    elif kind == "calumma-part":
        yield from _manifest(PartManifest.load(raw, where))
    elif kind == "calumma-plan":
        yield from _plan(parse_plan(raw, where))
    elif kind == "calumma-sequences":
        yield _facts("Sequences", {k: v for k, v in data.items() if k != "format"})
        yield from show_sequences(store, "seq-000000.u16", readable, limit)
    elif kind == "calumma-checkpoint":
        yield _facts("Checkpoint", {"step": data["step"], **data["layout"]})
        yield _files(data["files"])
        yield JSON.from_data(data["state"])
    else:
        yield JSON.from_data(data)


def _manifest(manifest: StepManifest | PartManifest) -> Found:
    head: dict[str, Any] = {"step": manifest.step, "fingerprint": manifest.fingerprint}
    rows: dict[str, Rows]
    if isinstance(manifest, StepManifest):
        head |= {f"made from {name}": value for name, value in manifest.inputs.items()}
        head |= {"parts": len(manifest.parts), "parts digest": manifest.parts_digest}
        rows = manifest.rows
    else:
        head |= {"part": manifest.part, "source": manifest.source}
        rows = {manifest.source: manifest.rows}
    yield _facts("Manifest", head | {f"{m} tokens": n for m, n in sorted(manifest.tokens.items())})
    yield _ledger(rows)
    yield _files([f.model_dump() for f in manifest.files])
    if manifest.facts:
        yield Text("Facts", style="bold")
        yield JSON.from_data(manifest.facts)


def _ledger(rows: dict[str, Rows]) -> Table:
    table = Table(title="Ledger", title_justify="left")
    for name in ("source", "in", "out", "filtered", "duplicate", "quarantined", "removed", "balance"):
        table.add_column(name, justify="left" if name == "source" else "right")
    for source, r in rows.items():
        gone = (
            Text("\n".join(f"{k} {n:,}" for k, n in d.items()) or "0")
            for d in (r.filtered, r.duplicate, r.quarantined, r.removed)
        )
        closed = Text("closed", "green") if r.balance == 0 else Text(f"open by {r.balance}", "red")
        table.add_row(source, f"{r.entered:,}", f"{r.out:,}", *gone, closed)
    return table


def _plan(plan: Plan) -> Found:
    yield _facts("Plan", {k: getattr(plan, k) for k in ("fingerprint", "seed", "sequence_length")})
    yield show_plan(plan)


def _files(files: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{len(files):,} files", title_justify="left")
    for name in ("name", "bytes", "sha256"):
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for f in files[:SHOWN_FILES]:
        table.add_row(Text(f["name"]), f"{f['bytes']:,}", Text(str(f["sha256"])[:16] + "…"))
    if len(files) > SHOWN_FILES:
        table.add_row(f"… and {len(files) - SHOWN_FILES:,} more", "", "")
    return table


def _lines(store: Storage, name: str, limit: int) -> Found:
    """Metrics: the first line, and the last ones."""
    lines = [json.loads(line) for line in store.get(name).decode().splitlines()]
    yield Text(f"{len(lines):,} lines; the last {min(limit, len(lines))}:", style="bold")
    keys = [k for k in (lines[-1] if lines else {}) if not isinstance(lines[-1][k], dict)]
    table = Table()
    for key in keys:
        table.add_column(Text(key), justify="right")
    for line in lines[-limit:] if limit else []:
        cells = (line.get(k, "") for k in keys)
        table.add_row(*(Text(f"{c:.4g}" if isinstance(c, float) else str(c)) for c in cells))
    yield table


# -- tables


def _parquet(store: Storage, name: str, readable: Readable, limit: int) -> Found:
    data, where = store.get(name), store.url(name)
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as e:
        raise StoreError(f"{where}: not a Parquet file ({e})") from e
    kind = (table.schema.metadata or {}).get(FORMAT_KEY, b"unmarked").decode().split()[0]
    yield _facts("Table", {"format": kind, "rows": table.num_rows, "columns": ", ".join(table.schema.names)})
    if kind == "calumma-samples":
        yield from show_samples(read_table(data, SAMPLES, where), readable, limit)
    elif kind == "calumma-documents":
        yield from show_documents(read_table(data, DOCUMENTS, where), readable, limit)
    else:
        yield _rows(table.slice(0, max(0, limit)))


def _rows(table: pa.Table) -> Table:
    shown = Table(show_lines=True)
    for name in table.column_names:
        shown.add_column(Text(name), overflow="fold")
    for row in table.to_pylist():
        shown.add_row(*(Text(_cell(v)) for v in row.values()))
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()[:16] + ("…" if len(value) > 8 else "")
    if isinstance(value, list):
        return "\n".join(_cell(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    return str(value)


# -- weights and tokenizers


def _tensors(store: Storage, name: str) -> Found:
    """The header of a safetensors file: names, types and shapes, no data."""
    size = int.from_bytes(store.range(name, 0, 8), "little")
    data = store.range(name, 8, 8 + size) if size <= store.size(name) - 8 else b""
    try:
        header = json.loads(data)
    except ValueError as e:
        raise StoreError(f"{store.url(name)}: not a safetensors file (its header cannot be read)") from e
    meta = header.pop("__metadata__", {})
    sizes = {name: prod(t["shape"]) for name, t in header.items()}
    yield _facts("Weights", {"tensors": len(header), "parameters": f"{sum(sizes.values()):,}", **meta})
    table = Table()
    for name in ("tensor", "dtype", "shape", "parameters"):
        table.add_column(name, justify="right" if name == "parameters" else "left", overflow="fold")
    for name, tensor in list(header.items())[:SHOWN_TENSORS]:
        shape = "×".join(map(str, tensor["shape"])) or "scalar"
        table.add_row(Text(name), Text(tensor["dtype"]), shape, f"{sizes[name]:,}")
    yield table


def _checkpoint(store: Storage, name: str) -> Found:
    """A torch file, read with ``weights_only``: whatever else is in it is refused."""
    import pickle

    import torch

    try:
        with store.open(name) as f:
            state = torch.load(f, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as e:
        raise StoreError(
            f"{store.url(name)}: holds more than tensors and plain values, or is damaged; it is not opened"
        ) from e
    table = Table()
    table.add_column("entry", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for key, value in _walk(state):
        table.add_row(Text(key), Text(value))
    yield table


def _walk(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, f"{str(value.dtype).removeprefix('torch.')} {'×'.join(map(str, value.shape)) or 'scalar'}"
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _walk(inner, f"{name}.{key}" if name else str(key))
    else:
        text = repr(value)
        yield name, text if len(text) <= 80 else text[:79] + "…"


def _pieces(store: Storage, limit: int) -> Found:
    """A text tokenizer: some of its pieces, and a sentence cut into them."""
    from model.text_tokenizer.codec import TextTokenizer

    tokenizer = TextTokenizer.load(store)
    yield _facts("Text tokenizer", {"pieces": tokenizer.pieces, "first id": tokenizer.vocabulary.text_start})
    start = tokenizer.vocabulary.text_start
    shown = [tokenizer.piece(start + n) for n in range(259, min(tokenizer.pieces, 259 + 20 * max(1, limit)))]
    yield Text(" ").join(
        Text(p, style="black on cyan" if i % 2 else "black on bright_cyan") for i, p in enumerate(shown)
    )


def _facts(title: str, facts: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for key, value in facts.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        table.add_row(Text(str(key)), Text(f"{value:,}" if whole else str(value)))
    return table
