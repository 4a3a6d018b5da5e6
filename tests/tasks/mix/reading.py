"""What tests of the mixture share: building it, and looking into what was built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra.storage import Storage
from infra.store.documents import DOCUMENTS
from infra.store.plan import PackedStore, Plan, load_plan
from infra.store.sequences import SequenceReader
from infra.store.tables import read_table
from tasks.context import StepContext
from tasks.mix.run import run


@dataclass(frozen=True)
class Known:
    """A document, read from its part by itself: what the mixture is checked against."""

    source: str
    part: str
    row: int
    held_out: bool
    kind: str
    category: str
    lengths: list[int]
    image_tokens: int
    answer_tokens: int
    sample_id: bytes

    @property
    def fits(self) -> bool:
        return self.lengths[0] <= 64


Contexts = Callable[..., StepContext]
Documents = dict[tuple[str, int], Known]


def build(context: StepContext, workers: int) -> Plan:
    run(context, workers)
    return load_plan(context.store())


def folders(plan: Plan) -> list[PackedStore]:
    return [*plan.stages, *plan.finetune, *plan.held_out.values()]


def spans_of(store: Storage, packed: PackedStore) -> list[dict[str, Any]]:
    reader = SequenceReader(store, packed.folder)
    return [row for file in range(reader.info.files) for row in reader.spans(file).to_pylist()]


def rows_of(context: StepContext) -> dict[str, list[dict[str, Any]]]:
    """The document store by part, read whole."""
    store = context.store("tokenize")
    parts = context.manifest("tokenize").parts
    return {p: read_table(store.get(f"parts/{p}.parquet"), DOCUMENTS, p).to_pylist() for p in parts}
