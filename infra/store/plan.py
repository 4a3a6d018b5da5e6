"""``plan.json``: what the mixture holds and in which folders, written by ``mix`` and read by the loader and the report.

The order of training follows from it alone: stages in their order, slices in their order, a keyed permutation inside
each slice (``model/data/order.py``). A checkpoint names the plan by its fingerprint.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.tables import FORMAT_KEY

VERSION = 1
PLAN = "plan.json"


INTERVALS = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # of the stage or epoch
        pa.field("stream", pa.string(), nullable=False),
        *(pa.field(n, pa.int64(), nullable=False) for n in ("start", "stop", "per_pass", "quota", "counted")),
        *(pa.field(n, pa.int64(), nullable=False) for n in ("tokens", "image_tokens")),
    ],
    metadata={FORMAT_KEY: f"calumma-plan {VERSION}".encode()},
)
"""``plan.parquet``: the intervals as a table."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(_Model):
    """What a stage takes from one endless stream of documents: the stream's documents ``start`` to ``stop - 1``.

    Document ``n`` of a stream is one of its pass ``n // per_pass``; that number is also its occurrence.
    """

    stream: str
    """A source; in fine-tuning a category of conversations."""
    start: int
    stop: int
    per_pass: int
    """Documents in one pass."""
    quota: int
    """Tokens wished for; in fine-tuning answer tokens."""
    counted: int
    """What the interval's documents hold of that: at least the quota, by less than one document."""
    tokens: int
    image_tokens: int


class PackedStore(_Model):
    """One folder of sequences: a stage of pre-training, an epoch of fine-tuning, or a source's held-out documents."""

    name: str
    kind: Literal["pretrain", "finetune", "held-out"]
    folder: str
    """Relative to the mix step's folder."""
    sequences: int
    slices: list[int]
    """Sequences by slice; they sum to ``sequences``."""
    documents: int
    """Occurrences packed."""
    split_documents: int
    """Of those, longer than a sequence and so split between pieces."""
    cut_pictures: int
    """Spans that hold a begin of image without its end, or the reverse. Always 0; counted from the written ids."""
    left_out: int = 0
    """Conversations longer than a sequence: a piece of an answer without its prompt teaches nothing good."""
    tokens: dict[str, dict[str, int]]
    """By source and modality (``text``, ``image`` with BOI and EOI, ``control``), counted from the written ids."""
    padding: int
    fill: float
    """Share of the positions that are not padding."""
    image_share: float
    """Image tokens over all tokens that are not padding."""
    intervals: list[Interval] = []


class Plan(_Model):
    """The whole of ``plan.json``."""

    format: Literal["calumma-plan"] = "calumma-plan"
    version: int = VERSION
    fingerprint: str
    """Of the mix step."""
    seed: int
    sequence_length: int = Field(ge=1)
    vocabulary: dict[str, Any]
    """``Vocabulary``'s fields."""
    stages: list[PackedStore]
    finetune: list[PackedStore]
    """By epoch."""
    held_out: dict[str, PackedStore]
    """By source."""

    def dump(self) -> bytes:
        return (json.dumps(self.model_dump(), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def load_plan(store: Storage) -> Plan:
    """The plan of a mix step's folder."""
    return parse_plan(store.get(PLAN), store.url(PLAN))


def parse_plan(data: bytes, where: str) -> Plan:
    """The plan in the bytes of a ``plan.json``; StoreError, which names ``where``, if they hold none."""
    try:
        raw = json.loads(data)
        version = raw.get("version", 0) if isinstance(raw, dict) else 0
        if isinstance(version, int) and version > VERSION:
            raise StoreError(f"{where}: plan version {version}; this Calumma reads up to {VERSION}. Use a newer one.")
        return Plan.model_validate(raw)
    except ValidationError as e:
        raise StoreError(f"{where}: not a plan that this Calumma reads ({e.error_count()} faults: {e})") from e
    except ValueError as e:
        raise StoreError(f"{where}: not valid JSON ({e}). Delete the mix step's folder and run `mix` again.") from e
