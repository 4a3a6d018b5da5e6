"""The step ``tokenize``: the sample store becomes the document store, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.store.commit import load_parts
from infra.store.documents import DOCUMENTS
from infra.store.manifest import PartManifest, Rows
from infra.store.samples import QUARANTINE, SAMPLES
from infra.store.tables import read_table, write_table
from tasks.context import StepContext
from tasks.documents.build import Empty, Row, document
from tasks.documents.ids import count_modalities, token_fault
from tasks.documents.removal import Removal
from tasks.pool import PartOutput, run_items

if TYPE_CHECKING:
    from model.text_tokenizer.codec import TextTokenizer


@dataclass(frozen=True, slots=True)
class SamplePart:
    """A part of the sample store, which becomes the part of the same name here."""

    part: str
    source: str


class DocumentMaker:
    """Makes one part of the document store at a time."""

    def __init__(self, context: StepContext) -> None:
        self._context = context
        self._samples = context.store("encode")

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        from model.text_tokenizer.codec import TextTokenizer  # SentencePiece, only where there is work

        return TextTokenizer.load(self._context.store("text-tokenizer"))

    @cached_property
    def _removal(self) -> Removal:
        return Removal.load(self._context.recipe.removal, self._context.recipe.folder)

    def _token_fault(self, tokens: bytes) -> str:
        """What keeps a sample that came as ids from being a document of this recipe's vocabulary; empty if nothing."""
        recipe = self._context.recipe
        return token_fault(np.frombuffer(tokens, "<u2"), recipe.vocabulary, recipe.image_tokenizer.codes_per_image)

    def process(self, item: SamplePart) -> PartOutput:
        name = f"parts/{item.part}.parquet"
        listed = PurePath(self._context.recipe.removal.list or "").name
        vocabulary = self._context.recipe.vocabulary
        rows: list[Row] = []
        filtered: Counter[str] = Counter()
        quarantine: list[dict[str, Any]] = []
        removed = 0
        table = read_table(self._samples.get(name), SAMPLES, self._samples.url(name))
        for batch in table.to_batches():
            for sample in batch.to_pylist():
                if self._removal.covers(sample["sample_id"], [(i["sha256"], i["url"]) for i in sample["images"]]):
                    removed += 1
                    continue
                if sample["kind"] == "tokens" and (fault := self._token_fault(sample["tokens"])):
                    place = {k: sample[k] for k in ("key", "file", "row")}
                    quarantine.append({**place, "source": item.source, "error": "bad-tokens", "message": fault})
                    continue
                try:
                    rows.append(document(sample, self._tokenizer.encode, vocabulary))
                except Empty as e:
                    filtered[str(e)] += 1
        tokens: Counter[str] = Counter()
        for row in rows:
            tokens.update(count_modalities(_one_use(row), vocabulary))
        files = {f"{item.part}.parquet": write_table(rows, DOCUMENTS)}
        if quarantine:
            files[f"{item.part}.quarantine.parquet"] = write_table(quarantine, QUARANTINE)
        return PartOutput(
            part=item.part,
            source=item.source,
            files=files,
            rows=Rows(
                entered=table.num_rows,
                out=len(rows),
                filtered=dict(sorted(filtered.items())),
                quarantined={"bad-tokens": len(quarantine)} if quarantine else {},
                removed={listed: removed} if removed else {},
            ),
            tokens=dict(tokens),
            facts={"held_out": sum(row["held_out"] for row in rows), "documents": len(rows)},
        )


def run(context: StepContext, workers: int | None = None) -> None:
    """Makes the document store and commits the step; ``workers`` 0: in this process, without Ray."""
    samples = context.manifest("encode")
    wanted = [p for p in samples.parts if not context.retry or p.endswith(f".r{context.retry}")]
    manifests = list(load_parts(context.store("encode"), wanted))
    items = [SamplePart(manifest.part, manifest.source) for manifest in manifests]
    total = sum(manifest.rows.out for manifest in manifests)
    parts = run_items(
        context, items, DocumentMaker, workers=workers, unit="samples", weight=lambda m: m.rows.entered, total=total
    )
    context.finish(parts=parts, facts={"sources": by_source(load_parts(context.store(), context.parts(parts)))})


def by_source(parts: Iterable[PartManifest]) -> dict[str, dict[str, int]]:
    """Documents, held-out documents and tokens by modality of each source; a pair counts with its first caption."""
    found: dict[str, Counter[str]] = {}
    for part in parts:
        found.setdefault(part.source, Counter()).update({**part.facts, **part.tokens})
    return {source: dict(counts) for source, counts in found.items()}


def _one_use(row: dict[str, Any]) -> Any:
    """Ids as counted in ``tokens``; a pair with its first caption, as caption and order come with the occurrence."""
    if row["kind"] != "pairs":
        return np.frombuffer(row["tokens"], "<u2")
    ids = np.frombuffer(row["picture"] + row["captions"][0], "<u2")
    return np.concatenate([ids, np.zeros(2, np.uint16)])  # <s> and </s>
