"""What the sample browser shows of a part: samples, what its pictures became, and everything that went away and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import PARTS, done_parts, load_part, part_manifest_name
from infra.store.samples import SAMPLES
from infra.store.tables import read_table
from tasks.addresses import Addresses, parse_part
from tasks.browse.decoder import Decoder
from tasks.browse.originals import Original, Originals, cut, pieces_of, read_originals
from tasks.ledger_parts import Ledger
from tasks.ledger_table import gone_words
from tasks.quarantine import Quarantined, about, rows_of_part, tried_again
from tasks.retry import is_transient
from tasks.scan.selected import first_row
from tasks.scan.tables import FILTERED, KEPT
from tasks.steps import STORES

BROWSABLE = ("scan", "encode")
LOOKED_AT = 64
"""Parts of a source among which one is chosen."""
EXAMPLES = 12
"""Samples shown of each reason to leave one out."""
SHOWN_ROWS = 40
"""Rows shown of each class in quarantine."""
SCAN_COLUMNS = ["sample_id", "key", "file", "row", "state", "reason", "held_out", "content", "images", "dropped"]

Row = dict[str, Any]


def chosen_parts(addresses: Addresses, step: str, part: str | None) -> list[str]:
    """The part asked for; else of every source the one, among its first, that left samples out for most reasons."""
    made = done_parts(addresses.store(step)) if step in addresses.prints else set()
    if part is not None:
        if part not in made:
            raise StoreError(f"{part}: no such part of {step} in {addresses.root}; calumma ledger --parts lists them")
        return [part]
    by_source: dict[str, list[str]] = {}
    for name in sorted(made):
        if (parsed := parse_part(name)) and not parsed.retry:
            by_source.setdefault(parsed.source, []).append(name)
    if not by_source:
        raise StoreError(f"{addresses.root}: step {step} has no part yet. Run the recipe: calumma run --to {step}")
    names = [s.name for s in addresses.recipe.sources if s.name in by_source]
    return [max(by_source[n][:LOOKED_AT], key=lambda p: _reasons(addresses, p)) for n in names]


def _reasons(addresses: Addresses, part: str) -> int:
    """For how many reasons the part's samples were left out, in all steps."""
    stores = [addresses.store(step) for step in STORES if step in addresses.prints]
    made = [load_part(store, part).rows for store in stores if store.exists(part_manifest_name(part))]
    return sum(len(list(gone_words(rows))) for rows in made)


def ledger_lines(ledger: Ledger) -> list[Row]:
    """The ledger's net lines."""
    return [
        {"step": step.step, "source": source, "in": net.entered, "out": net.out, "balance": net.balance}
        | {"gone": list(gone_words(net)), "parts": step.parts, "missing": step.missing}
        for step in ledger.steps
        for source, line in step.sources.items()
        for net in (line.net,)
    ]


class PartView:
    """Collects what the page shows of one part."""

    def __init__(self, addresses: Addresses, step: str, part: str, limit: int) -> None:
        self._addresses, self._step, self._part, self._limit = addresses, step, part, limit
        parsed = parse_part(part)
        self._source = addresses.recipe.source(parsed.source if parsed else part)
        self._scan = {row["sample_id"]: row for row in self._scan_rows()}

    def data(self, decoder: Decoder | None) -> Row:
        """Everything for the template."""
        samples = list(self._encoded() if self._step == "encode" else self._scanned())
        gone = [*self._filtered(), *self._not_selected()]
        lost = list(self._quarantined())
        by_key = {row["key"]: row for row in self._scan.values()}
        keys = {s["key"] for s in samples} | {e["key"] for g in gone for e in g["examples"]} | {q.key for q in lost}
        keys |= {e["twin"] for g in gone for e in g["examples"] if e["twin"]}
        originals = read_originals(
            self._addresses,
            self._part,
            keys,
            {k: [i.get("faces", []) for i in row["images"]] for k, row in by_key.items() if k in keys},
            {k: row["dropped"] for k, row in by_key.items() if k in keys},
        )
        for sample in samples:
            self._join(sample, originals, decoder)
        for group in gone:
            for example in group["examples"]:
                example["original"] = _shown(originals.found.get(example["key"]))
                example["twin_original"] = _shown(originals.found.get(example["twin"] or ""))
        return {
            "part": self._part,
            "source": self._source.name,
            "kind": self._source.kind,
            "licence": self._source.licence,
            "way": list(self._way()),
            "samples": samples,
            "total": self._total(),
            "quarantine": list(_by_class(lost, originals)),
            "gone": gone,
            "why_not": originals.why_not,
        }

    def _way(self) -> Iterator[Row]:
        """The part's line in each step's ledger."""
        for step in (s for s in STORES if s in self._addresses.prints):
            store = self._addresses.store(step)
            if store.exists(part_manifest_name(self._part)):
                rows = load_part(store, self._part).rows
                yield {"step": step, "in": rows.entered, "out": rows.out, "gone": list(gone_words(rows))}

    def _total(self) -> int:
        rows = load_part(self._addresses.store(self._step), self._part).rows
        return rows.out

    # -- samples

    def _scan_rows(self) -> list[Row]:
        store = self._addresses.store("scan")
        if not store.exists(part_manifest_name(self._part)):
            return []
        first = first_row(self._addresses.context("scan")).get(self._part, 1)
        rows = _rows(store, self._part, SCAN_COLUMNS)
        return [row | {"row": row["row"] + first - 1} for row in rows]

    def _encoded(self) -> Iterator[Row]:
        store, name = self._addresses.store("encode"), f"{PARTS}/{self._part}.parquet"
        table = read_table(store.get(name), SAMPLES, store.url(name)).slice(0, self._limit)
        for row in table.to_pylist():
            images = [
                {"width": i["width"], "height": i["height"], "url": i["url"], "faces": len(i["faces"])}
                | {"codes": np.frombuffer(i["codes"], "<u2")}
                for i in row["images"]
            ]
            yield {k: row[k] for k in ("key", "file", "row", "kind", "category", "licence", "held_out", "language")} | {
                "id": row["sample_id"].hex(),
                "captions": [cut(c) for c in row["captions"]],
                "pieces": pieces_of(row["segments"]),
                "images": images,
                "scores": row["scores"],
                "dropped": row["dropped_images"],
                "tokens": len(row["tokens"]) // 2,
            }

    def _scanned(self) -> Iterator[Row]:
        for row in islice((r for r in self._scan.values() if r["state"] == KEPT), self._limit):
            images = [{**i, "faces": len(i.get("faces", [])), "codes": None} for i in row["images"]]
            yield {k: row[k] for k in ("key", "file", "row", "held_out")} | {
                "id": row["sample_id"].hex(),
                "kind": self._source.kind,
                "licence": self._source.licence,
                "images": images,
                "dropped": len(row["dropped"]),
                **{"category": "", "language": "", "captions": [], "pieces": (), "scores": [], "tokens": 0},
            }

    def _join(self, sample: Row, originals: Originals, decoder: Decoder | None) -> None:
        """Adds the original pictures, and what the decoder makes of the codes; texts where only the source has them."""
        original = originals.found.get(sample["key"])
        for number, image in enumerate(sample["images"]):
            known = original.pictures[number] if original and number < len(original.pictures) else None
            image["original"] = asdict(known) if known else None
            codes = image.pop("codes")
            image["decoded"] = decoder.add(codes) if decoder is not None and codes is not None else None
        if original and not sample["captions"] and not sample["pieces"]:
            sample["captions"], sample["pieces"] = list(original.captions), original.pieces

    # -- what went away

    def _quarantined(self) -> Iterator[Quarantined]:
        for step in (s for s in STORES if s in self._addresses.prints):
            store = self._addresses.store(step)
            if store.exists(part_manifest_name(self._part)):
                tries = tried_again(self._addresses, step, done_parts(store))
                first = first_row(self._addresses.context("scan")).get(self._part, 1) if step == "scan" else 1
                yield from rows_of_part(store, step, self._part, tries, first)

    def _filtered(self) -> Iterator[Row]:
        rows = [row for row in self._scan.values() if row["state"] == FILTERED]
        yield from self._groups("scan", "filtered", rows, {})

    def _not_selected(self) -> Iterator[Row]:
        """What ``select`` left out; beside an equal sample the one of this part that stays."""
        if "select" not in self._addresses.prints:
            return
        store = self._addresses.store("select")
        if not store.exists(part_manifest_name(self._part)):
            return
        chosen = {r["sample_id"]: r for r in _rows(store, self._part, ["sample_id", "keep", "reason"])}
        kept = {r["content"]: r["key"] for i, r in self._scan.items() if i in chosen and chosen[i]["keep"]}
        rows = [self._scan[i] | {"reason": r["reason"]} for i, r in chosen.items() if not r["keep"] and i in self._scan]
        yield from self._groups("select", "left out", rows, kept)

    def _groups(self, step: str, fate: str, rows: Sequence[Row], twins: Mapping[bytes, str]) -> Iterator[Row]:
        for reason, count in Counter(row["reason"] for row in rows).most_common():
            own = [row for row in rows if row["reason"] == reason][:EXAMPLES]
            yield {"step": step, "fate": fate, "reason": reason, "count": count} | {
                "examples": [
                    {"key": r["key"], "file": r["file"], "row": r["row"], "twin": twins.get(r["content"])} for r in own
                ]
            }


def _by_class(rows: Sequence[Quarantined], originals: Originals) -> Iterator[Row]:
    for error, count in Counter(row.error for row in rows).most_common():
        own = [row for row in rows if row.error == error][:SHOWN_ROWS]
        yield {"error": error, "count": count, "about": about(error), "again": is_transient(error)} | {
            "rows": [asdict(row) | {"original": _shown(originals.found.get(row.key))} for row in own]
        }


def _shown(original: Original | None) -> Row | None:
    """The beginning of an original: its pictures, and some of its words."""
    if original is None:
        return None
    words = " ".join([*original.captions, *(p["text"] for p in original.pieces if "text" in p)])
    return {"pictures": [asdict(p) for p in original.pictures[:4]], "text": cut(words, 160)}


def _rows(store: Storage, part: str, columns: list[str]) -> list[Row]:
    with store.open(f"{PARTS}/{part}.parquet") as f:
        rows: list[Row] = pq.ParquetFile(f).read(columns=columns).to_pylist()
    return rows
