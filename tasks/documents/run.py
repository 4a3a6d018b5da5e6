"""The step ``tokenize``: the sample store becomes the document store, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from infra.errors import SourceError
from infra.store.commit import entry, load_parts, own_retries, retry_of
from infra.store.documents import DOCUMENTS
from infra.store.manifest import FileEntry, PartManifest, Rows
from infra.store.samples import QUARANTINE, SAMPLES
from infra.store.tables import read_table, write_table
from tasks.context import StepContext
from tasks.documents.build import Empty, Row, document
from tasks.documents.ids import count_modalities, token_fault
from tasks.documents.removal import Reach, Removal
from tasks.fingerprint import documents_fingerprint
from tasks.pool import PartOutput, run_items
from tasks.scan.tables import SCAN
from tasks.steps import BY_NAME

if TYPE_CHECKING:
    from model.text_tokenizer.codec import TextTokenizer


REMOVED = "removed.contents"
"""In the step's folder, where there is a removal list: content hashes of what it names, 32 bytes each, sorted.

A retry has one of its own, ``removed.r1.contents``: by then the list may reach more.
"""


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
        """The list, if it is still the one that the step's address speaks of."""
        context = self._context
        if context.recipe.removal.list is None:
            return Removal()
        found = Removal.load(context.recipe.removal, context.recipe.folder)
        inputs = {name: context.fingerprints[name] for name in BY_NAME["tokenize"].inputs}
        if documents_fingerprint(context.recipe, inputs, found.digest) != context.fingerprint:
            raise SourceError(
                f"{context.recipe.removal.list}: the removal list changed while documents were being made. Run again: "
                "what is made with the new list has an address of its own."
            )
        return found

    @cached_property
    def _removed_contents(self) -> frozenset[bytes]:
        context = self._context
        data = context.store().get(_removed_name(context)) if context.recipe.removal.list is not None else b""
        return frozenset(data[n : n + 32] for n in range(0, len(data), 32))

    def _gone(self, part: str) -> set[bytes]:
        """Ids of the part's samples whose content the removal list names under another sample's id or URL."""
        if not self._removed_contents:
            return set()
        table = _scanned(self._context, part, ["sample_id", "content"])
        pairs = zip(table["sample_id"].to_pylist(), table["content"].to_pylist(), strict=True)
        return {sample for sample, content in pairs if content in self._removed_contents}

    def _token_fault(self, tokens: bytes) -> str:
        """What keeps a sample that came as ids from being a document of this recipe's vocabulary; empty if nothing."""
        recipe = self._context.recipe
        return token_fault(np.frombuffer(tokens, "<u2"), recipe.vocabulary, recipe.image_tokenizer.codes_per_image)

    def process(self, item: SamplePart) -> PartOutput:
        name = f"parts/{item.part}.parquet"
        gone = self._gone(item.part)
        listed = PurePath(self._context.recipe.removal.list or "").name
        vocabulary = self._context.recipe.vocabulary
        rows: list[Row] = []
        filtered: Counter[str] = Counter()
        quarantine: list[dict[str, Any]] = []
        removed = 0
        table = read_table(self._samples.get(name), SAMPLES, self._samples.url(name))
        for batch in table.to_batches():
            for sample in batch.to_pylist():
                pictures = [(i["sha256"], i["url"]) for i in sample["images"]]
                if sample["sample_id"] in gone or self._removal.covers(sample["sample_id"], pictures):
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
    files, removal = _reach(context)
    # The step itself leaves out what a retry added to it; everything else that encode holds is its own.
    added = own_retries(context.store())
    wanted = [
        part
        for part in samples.parts
        if (retry_of(part) == context.retry if context.retry else retry_of(part) not in added)
    ]
    items, total = [], 0
    for manifest in load_parts(context.store("encode"), wanted):
        items.append(SamplePart(manifest.part, manifest.source))
        total += manifest.rows.out
    parts = run_items(
        context, items, DocumentMaker, workers=workers, unit="samples", weight=lambda m: m.rows.entered, total=total
    )
    sources = by_source(load_parts(context.store(), context.parts(parts)))
    context.finish(parts=parts, files=files, facts={"sources": sources, **removal})


def _scanned(context: StepContext, part: str, columns: list[str]) -> pa.Table:
    store, name = context.store("scan"), f"parts/{part}.parquet"
    return read_table(store.get(name), SCAN, store.url(name), columns)


def _removed_name(context: StepContext) -> str:
    return REMOVED.replace(".", f".r{context.retry}.") if context.retry else REMOVED


def _reach(context: StepContext) -> tuple[list[FileEntry], dict[str, Any]]:
    """Writes the contents that a removal list names into the step's folder: the file, and as facts what was found."""
    if context.recipe.removal.list is None:
        return [], {}
    removal = Removal.load(context.recipe.removal, context.recipe.folder)
    reach, parts = Reach(removal), context.manifest("scan").parts
    for number, part in enumerate(parts, 1):
        reach.add(_scanned(context, part, ["sample_id", "content", "images"]))
        context.progress.update(number, len(parts), "parts", note="looking for what is removed")
    name, data = _removed_name(context), b"".join(sorted(reach.contents))
    context.store().put(name, data)
    return [entry(name, data)], {"removal": {"entries": len(removal), "entries_that_name_nothing": reach.unmatched}}


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
