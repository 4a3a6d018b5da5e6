"""``calumma tokens``: a mixture's tokens in the formats that other trainers read, in the order of training."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from infra.errors import RecipeError, StoreError
from infra.storage import Storage
from infra.store.plan import PackedStore, Plan, load_plan
from tasks.exchange.mds import SHARD_BYTES, MdsWriter
from tasks.exchange.megatron import FILE_BYTES, MegatronWriter
from tasks.exchange.records import Record, documents, sequences

Format = Literal["mds", "megatron"]
Unit = Literal["sequences", "documents"]
ABOUT = "calumma-tokens.json"
LOST = {
    ("mds", "sequences"): ["which document of which source lies where"],
    ("mds", "documents"): ["which documents share a sequence, and the padding behind them"],
    ("megatron", "sequences"): [
        "where documents begin inside a sequence (each ends with </s>, id 2, padding is id 1)",
        "which document of which source lies where",
        "which tokens count in the loss",
    ],
    ("megatron", "documents"): [
        "which documents share a sequence, and the padding behind them",
        "source, part, row and occurrence, and which records are pieces of a longer document",
        "which tokens count in the loss",
    ],
}
"""What the format has no place for."""
_PROVENANCE = {"source": "str", "part": "str", "row": "int32", "occurrence": "int32", "first_token": "int32"}


@dataclass(frozen=True, slots=True)
class Exported:
    """One data set that was written."""

    name: str
    url: str
    records: int
    tokens: int


def export_tokens(
    mix_store: Storage,
    out: Storage,
    form: Format,
    unit: Unit,
    *,
    only: str | None = None,
    dtype: Literal["uint16", "int32"] = "uint16",
    file_bytes: int | None = None,
    progress: Any = None,
) -> list[Exported]:
    """Writes one data set for every folder of sequences of a mix step, or for one of them, below ``out``.

    Args:
        mix_store: The mix step's folder.
        out: Each data set gets a folder of its own in it, by its name; ``calumma-tokens.json`` is written there last.
        form: ``mds`` for MosaicML Streaming, ``megatron`` for Megatron's ``.bin`` and ``.idx``.
        unit: ``sequences`` as they are packed, padding included, or ``documents`` without padding.
        only: The name of one stage, epoch or source of held-out sequences.
        dtype: Of Megatron's tokens; it takes uint16 (code 8) and, as it writes itself for such vocabularies, int32.
        file_bytes: Size of a file at most; None: 64 MiB of MDS, 256 MiB of Megatron's.
        progress: A ``rich.progress.Progress`` to show it in, or None.

    Raises:
        RecipeError: there is no such stage, epoch or source.
        StoreError: a folder to write to is not empty, or a sequence is damaged.
        ResourceError: the disk has no room.
    """
    plan = load_plan(mix_store)
    chosen = _chosen(plan, only)
    for name, _ in chosen:
        if next(out.find(name), None) is not None:
            raise StoreError(f"{out.url(name)}: there are files already. Choose another --out, or remove them.")
    width = 2 if form == "mds" or dtype == "uint16" else 4
    out.need(sum(packed.sequences for _, packed in chosen) * (plan.sequence_length * width + 64), "the export")
    found = []
    for name, packed in chosen:
        store = out.sub(name)
        records = (sequences if unit == "sequences" else documents)(mix_store, plan, packed, progress)
        if form == "mds":
            columns = _columns(plan, packed, unit)
            count, tokens = _mds(MdsWriter(store, columns, file_bytes or SHARD_BYTES), records)
        else:
            count, tokens = _megatron(MegatronWriter(store, dtype, file_bytes or FILE_BYTES), records)
        about = {
            "format": f"calumma-tokens {form}",
            "version": 1,
            "plan": plan.fingerprint,
            "name": packed.name,
            "kind": packed.kind,
            "unit": unit,
            "records": count,
            "tokens": tokens,
            "sequence_length": plan.sequence_length,
            "vocabulary": plan.vocabulary,
            "lost": LOST[form, unit],
        }
        store.put(ABOUT, (json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
        found.append(Exported(name, store.root, count, tokens))
    return found


def _chosen(plan: Plan, only: str | None) -> list[tuple[str, PackedStore]]:
    """Folders of sequences by the name that their data set gets."""
    every = [(packed.name, packed) for packed in (*plan.stages, *plan.finetune)]
    every += [(f"held-out-{source}", packed) for source, packed in plan.held_out.items()]
    found = [(name, packed) for name, packed in every if packed.sequences and only in (None, name)]
    if not found:
        names = ", ".join(name for name, packed in every if packed.sequences)
        raise RecipeError(f"--only {only}: no such stage, epoch or held-out source with sequences; there are {names}")
    return found


def _columns(plan: Plan, packed: PackedStore, unit: Unit) -> dict[str, str]:
    whole = unit == "sequences"
    length = f":{plan.sequence_length}" if whole else ""
    loss = {"loss": f"ndarray:uint8{length}"} if packed.kind == "finetune" else {}
    return {
        "tokens": f"ndarray:uint16{length}",
        "position": "int64",
        **loss,
        **({"starts": "ndarray:int32"} if whole else _PROVENANCE),
    }


def _mds(writer: MdsWriter, records: Iterable[Record]) -> tuple[int, int]:
    count = tokens = 0
    for record in records:
        sample = {"tokens": record.tokens_T, "loss": record.loss_T, "starts": record.starts_K, **record.fields}
        writer.write(sample)
        count += 1
        tokens += len(record.tokens_T)
    writer.finish()
    return count, tokens


def _megatron(writer: MegatronWriter, records: Iterable[Record]) -> tuple[int, int]:
    count = tokens = 0
    for record in records:
        writer.write(record.tokens_T)
        count += 1
        tokens += len(record.tokens_T)
    writer.finish()
    return count, tokens
