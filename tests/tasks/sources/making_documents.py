"""Sources of texts, documents, conversations and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from infra.storage import Storage
from tasks.exchange.mds import MdsWriter
from tasks.exchange.megatron import MegatronWriter
from tests.tasks.sources.making import (
    BROKEN,
    PACK,
    Expected,
    Row,
    Written,
    faults_of,
    json_line,
    name_of,
    picture,
    put,
    strings,
    text_of,
    write_table,
)

CODES = 4
"""Image codes a picture, in sources of tokens."""
TEXT_START = 16384
"""First id of texts there."""


# -- texts


def text_jsonl(packed: str, folder: Path, rows: list[Row]) -> Written:
    fields = [{} if b == "missing-field" else {"text": 7 if b == "bad-field" else text_of(n)} for n, b in rows]
    name = f"texts.jsonl{packed}"
    lines = [json_line(f, bad) + b"\n" for f, (_, bad) in zip(fields, rows, strict=True)]
    put(folder / name, PACK[packed](b"".join(lines)))
    return "text", name, {}, faults_of(name, rows)


def text_parquet(folder: Path, rows: list[Row]) -> Written:
    texts = [None if bad == "missing-field" else text_of(number) for number, bad in rows]
    write_table(folder / "texts.parquet", {"text": strings(texts, [bad for _, bad in rows])})
    return "text", "texts.parquet", {}, faults_of("texts.parquet", rows)


def text_plain(packed: str, folder: Path, rows: list[Row]) -> Written:
    faults = []
    for n, (number, bad) in enumerate(rows):
        name = f"{name_of(n)}.txt{packed}"
        data = PACK[packed]((b"\xff" if bad == "not-utf-8" else b"") + text_of(number).encode())
        put(folder / "texts" / name, data[:-6] if bad == "damaged-file" else data)
        if bad:
            faults.append(Expected(name, n + 1, bad))
    return "text", "texts", {}, faults


# -- documents and conversations


def interleaved(folder: Path, rows: list[Row]) -> Written:
    lines = []
    for n, (number, bad) in enumerate(rows):
        name = f"{name_of(n)}.png"
        if bad != "missing-image":
            put(folder / "pictures" / name, BROKEN if bad == "not-an-image" else picture(number))
        segments: list[Any] = [
            text_of(number),
            {"type": "image", "image": name if bad != "path-escape" else f"../{name}"},
        ]
        if bad == "bad-field":
            segments.append({"type": "film", "film": "a.mp4"})
        lines.append(json_line({} if bad == "missing-field" else {"segments": segments}, bad) + b"\n")
    put(folder / "docs.jsonl", b"".join(lines))
    return "interleaved", "docs.jsonl", {"images": "pictures"}, faults_of("docs.jsonl", rows)


def messages(folder: Path, rows: list[Row]) -> Written:
    lines = []
    for n, (number, bad) in enumerate(rows):
        name = f"{name_of(n)}.png"
        if bad != "missing-image":
            put(folder / "pictures" / name, BROKEN if bad == "not-an-image" else picture(number))
        fields: dict[str, Any] = {"prompt": "What is this?", "image": name, "response": text_of(number)}
        if bad == "missing-field":
            del fields["response"]
        elif bad == "bad-field":
            fields["prompt"] = 7
        lines.append(json_line(fields, bad) + b"\n")
    put(folder / "talks.jsonl", b"".join(lines))
    options = {"images": "pictures", "image": "image", "category": "visual-chat"}
    return "messages", "talks.jsonl", options, faults_of("talks.jsonl", rows)


def obelics(folder: Path, rows: list[Row]) -> Written:
    texts: list[Any] = []
    images: list[Any] = []
    data: list[Any] = []
    for number, bad in rows:
        texts.append([text_of(number), "" if bad == "bad-structure" else None])
        images.append([None, f"https://pictures.example/{number}.png"])
        data.append([None, BROKEN if bad == "not-an-image" else None if bad == "not-downloaded" else picture(number)])
        if bad == "missing-field":
            texts[-1] = None
        elif bad == "unlike-lengths":
            images[-1] = images[-1] * 2
    write_table(folder / "web.parquet", {"texts": texts, "images": images, "bytes": data})
    faults = faults_of("web.parquet", [(n, "bad-structure" if bad == "unlike-lengths" else bad) for n, bad in rows])
    return "interleaved", "web.parquet", {"image_bytes": "bytes"}, faults


def html(folder: Path, rows: list[Row]) -> Written:
    faults = []
    for n, (number, bad) in enumerate(rows):
        name = f"{name_of(n)}.html"
        source = f"img/{name_of(n)}.png"
        if bad == "not-downloaded":
            source = "https://pictures.example/" + source
        put(folder / "pages" / source if bad != "not-downloaded" else folder / "unused", picture(number))
        if bad == "not-an-image":
            put(folder / "pages" / source, BROKEN)
        page = f"<html><body><p>{text_of(number)}</p><p><img src='{source}'></p></body></html>"
        if bad == "bad-markup":
            page = "<div>" * 100_000 + page
        put(folder / "pages" / name, (b"\xff" if bad == "not-utf-8" else b"") + page.encode())
        if bad:
            faults.append(Expected(name, n + 1, bad))
    return "interleaved", "pages", {}, faults


def markdown(folder: Path, rows: list[Row]) -> Written:
    faults = []
    for n, (number, bad) in enumerate(rows):
        name = f"{name_of(n)}.md"
        if bad != "missing-image":
            put(folder / "pages" / "img" / f"{name_of(n)}.png", BROKEN if bad == "not-an-image" else picture(number))
        page = f"# Page\n\n{text_of(number)}\n\n![the picture](img/{name_of(n)}.png)\n".encode()
        if bad == "too-large":
            page *= (5 << 20) // len(page)
        put(folder / "pages" / name, (b"\xff" if bad == "not-utf-8" else b"") + page)
        if bad:
            faults.append(Expected(name, n + 1, bad))
    return "interleaved", "pages", {}, faults


# -- tokens


def ids_of_row(number: int) -> list[int]:
    """A document in Chameleon's own vocabulary: its number in two ids of text, and a picture of ``CODES`` codes."""
    text = [TEXT_START + 300 + number // 1000, TEXT_START + 300 + number % 1000]
    return [*text, 8197, *(4 + (number + k) % 8192 for k in range(CODES)), 8196]


def _token_values(rows: list[Row]) -> list[Any]:
    return [
        [*ids_of_row(max(n, 0)), 70_000]
        if bad == "bad-tokens"
        else None
        if bad == "missing-field"
        else [0, *ids_of_row(n), 2]
        for n, bad in rows
    ]


def tokens_parquet(kind: str, folder: Path, rows: list[Row]) -> Written:
    values = _token_values(rows)
    if kind == "binary":
        odd = [bad == "bad-tokens" for _, bad in rows]
        data = [
            None if v is None else np.array(v[:-1], "<u2").tobytes() + b"\2" * (1 if o else 2)
            for v, o in zip(values, odd, strict=True)
        ]
        values = [d if d is None or o else d[:-2] + b"\2\0" for d, o in zip(data, odd, strict=True)]
    write_table(folder / "tokens.parquet", {"tokens": values})
    return "tokens", "tokens.parquet", {}, faults_of("tokens.parquet", rows)


def tokens_jsonl(packed: str, folder: Path, rows: list[Row]) -> Written:
    lines = [json_line({"tokens": v}, bad) + b"\n" for v, (_, bad) in zip(_token_values(rows), rows, strict=True)]
    name = f"tokens.jsonl{packed}"
    put(folder / name, PACK[packed](b"".join(lines)))
    return "tokens", name, {}, faults_of(name, rows)


def tokens_mds(folder: Path, rows: list[Row]) -> Written:
    store = Storage(folder / "mds")
    writer = MdsWriter(store, {"tokens": "ndarray:int32"})
    for value in _token_values(rows):
        writer.write({"tokens": value})
    writer.finish()
    return "tokens", "mds", {}, faults_of("shard.00000.mds", rows)


def tokens_megatron(folder: Path, rows: list[Row]) -> Written:
    writer = MegatronWriter(Storage(folder / "megatron"), "int32")
    for value in _token_values(rows):
        writer.write(np.array(value))
    writer.finish()
    return "tokens", "megatron", {}, faults_of("tokens-00000.idx", rows)
