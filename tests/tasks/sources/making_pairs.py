"""Sources of pairs: lists, folders, archives and tables."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

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

# -- lists of pairs


def _pair_fields(folder: Path, place: int, row: Row) -> dict[str, Any]:
    """A row's fields, its picture written below ``folder``."""
    number, bad = row
    name = f"{name_of(place)}.png"
    fields: dict[str, Any] = {"file": name, "caption": text_of(number), "licence": "CC0-1.0"}
    if bad == "path-escape":
        fields["file"] = f"../../{name}"
    elif bad == "missing-field":
        del fields["file"]
    elif bad == "bad-field":
        fields["caption"] = 7
    elif bad != "missing-image":
        put(folder / name, BROKEN if bad == "not-an-image" else picture(number))
    return fields


def pairs_jsonl(packed: str, folder: Path, rows: list[Row]) -> Written:
    lines = [json_line(_pair_fields(folder / "pictures", n, row), row[1]) for n, row in enumerate(rows)]
    name = f"list.jsonl{packed}"
    put(folder / name, PACK[packed](b"".join(line + b"\n" for line in lines)))
    return "pairs", name, {"images": "pictures"}, faults_of(name, rows)


def pairs_table(kind: str, packed: str, folder: Path, rows: list[Row]) -> Written:
    lines = [["file", "caption", "licence"]]
    for n, row in enumerate(rows):
        lines.append(list(_pair_fields(folder / "pictures", n, row).values()))
        if row[1] == "bad-columns":
            lines[-1].append("one more")
    data = ("\t" if kind == "tsv" else ",").encode()
    content = [data.join(cell.encode() for cell in line) for line in lines]
    for n, (_, bad) in enumerate(rows, 1):
        if bad == "not-utf-8":
            content[n] = content[n].replace(b"number", b"n\xffmber")
    name = f"list.{kind}{packed}"
    put(folder / name, PACK[packed](b"".join(line + b"\n" for line in content)))
    return "pairs", name, {"images": "pictures"}, faults_of(name, rows, 2)


def pairs_folder(folder: Path, rows: list[Row]) -> Written:
    for n, (number, bad) in enumerate(rows):
        put(folder / "pairs" / f"{name_of(n)}.png", BROKEN if bad == "not-an-image" else picture(number))
        if bad != "missing-caption":
            text = text_of(number).encode()
            put(folder / "pairs" / f"{name_of(n)}.txt", b"\xff" + text if bad == "not-utf-8" else text)
    faults = [Expected(f"{name_of(n)}.png", n + 1, bad) for n, (_, bad) in enumerate(rows) if bad]
    return "pairs", "pairs", {}, faults


# -- pairs in archives and tables


def webdataset(packed: str, folder: Path, rows: list[Row]) -> Written:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for n, (number, bad) in enumerate(rows):
            key = f"train/{name_of(n)}"
            for member, data in _members(key, number, bad):
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    name = f"00000.tar{packed}"
    put(folder / name, PACK[packed](sink.getvalue()))
    return "pairs", name, {}, faults_of(name, rows)


def _members(key: str, number: int, bad: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    if bad == "path-escape":
        key = f"../{key}"
    about = json.dumps({"licence": "CC0-1.0", "url": f"https://pictures.example/{number}"}).encode()
    if bad != "no-picture":
        yield tarfile.TarInfo(f"{key}.png"), BROKEN if bad == "not-an-image" else picture(number)
    if bad == "bad-member":
        link = tarfile.TarInfo(f"{key}.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        yield link, b""
    if bad == "duplicate-member":
        yield tarfile.TarInfo(f"{key}.png"), picture(number)
    if bad != "missing-caption":
        text = tarfile.TarInfo(f"{key}.txt")
        if bad == "too-large":
            text.pax_headers = {"comment": "x" * (2 << 20)}
        yield text, (b"\xff" if bad == "not-utf-8" else b"") + text_of(number).encode()
    yield tarfile.TarInfo(f"{key}.json"), about[:-3] if bad == "bad-json" else about


def img2dataset(kind: str, folder: Path, rows: list[Row]) -> Written:
    """One shard as its ``output_format`` ``kind`` leaves it."""
    root, keys = folder / "out", [f"{n:09d}" for n in range(len(rows))]
    bads = [bad for _, bad in rows]
    status = [
        {"failed-to-download": "failed_to_download", "failed-to-resize": "failed_to_resize"}.get(b, "success")
        for b in bads
    ]
    captions = [None if b == "missing-caption" else text_of(n) for n, b in rows]
    addresses = [f"https://pictures.example/{n}.png" for n, _ in rows]
    table: dict[str, Any] = {
        "url": addresses,
        "caption": captions,
        "key": keys,
        "status": status,
        "error_message": [None if s == "success" else "HTTP Error 404: Not Found" for s in status],
        "width": pa.array([24 if s == "success" else None for s in status], pa.int32()),
        "height": pa.array([24 if s == "success" else None for s in status], pa.int32()),
    }
    data = [BROKEN if b == "not-an-image" else picture(n) for n, b in rows]
    stored = [d if s == "success" and b != "gone" else None for d, s, b in zip(data, status, bads, strict=True)]
    faults: list[Expected] = []
    gone = {"webdataset": "no-picture", "files": "missing-image", "parquet": "not-downloaded"}[kind]
    in_tar = 0
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for n, (key, image, caption) in enumerate(zip(keys, stored, captions, strict=True)):
            in_tar += image is not None
            in_table = kind != "webdataset" or image is None
            error = "not-downloaded" if status[n] != "success" else gone if bads[n] == "gone" else bads[n]
            if error:
                faults.append(
                    Expected("00000.parquet", n + 1, error) if in_table else Expected("00000.tar", in_tar, error)
                )
            if image is None:
                continue
            about = {"url": addresses[n], "key": key, "status": "success"} | ({"caption": caption} if caption else {})
            files = {"png": image, "json": json.dumps(about).encode()} | ({"txt": caption.encode()} if caption else {})
            for extension, content in sorted(files.items()):
                if kind == "files":
                    put(root / "00000" / f"{key}.{extension}", content)
                else:
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    if kind == "webdataset":
        put(root / "00000.tar", sink.getvalue())
    if kind == "parquet":
        table |= {"txt": captions, "png": stored}
    write_table(root / "00000.parquet", table)
    put(root / "00000_stats.json", b"{}")
    return "pairs", "out", {}, faults


def pairs_parquet(kind: str, folder: Path, rows: list[Row]) -> Written:
    images: list[Any] = []
    for n, (number, bad) in enumerate(rows):
        name, data = f"{name_of(n)}.png", BROKEN if bad == "not-an-image" else picture(number)
        if kind == "path":
            if bad != "missing-image":
                put(folder / "pictures" / name, data)
            images.append(f"../{name}" if bad == "path-escape" else name)
        else:
            found = None if bad == "no-picture" else data
            images.append({"bytes": found, "path": None} if kind == "struct" else found)
    bads = [bad for _, bad in rows]
    texts = [None if bad == "missing-caption" else text_of(number) for number, bad in rows]
    write_table(folder / "pairs.parquet", {"image": images, "caption": strings(texts, bads)})
    options = {"images": "pictures"} if kind == "path" else {}
    return "pairs", "pairs.parquet", options, faults_of("pairs.parquet", rows)
