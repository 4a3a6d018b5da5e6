"""Bad rows among good ones, in every format: none is lost, none is doubled, each is reported where it stands."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.encode.decode import ImageError, open_image
from tasks.scan import run as scan
from tasks.sources import READERS, open_source
from tasks.sources.base import BadRow, EndOfRange, RawSample, Source, WorkItem
from tasks.sources.faults import FAULTS
from tests.tasks.file_sources import MakeContext, make_context  # noqa: F401
from tests.tasks.sources.makers import FORMATS
from tests.tasks.sources.making import Expected
from tests.tasks.sources.making_documents import TEXT_START, ids_of_row
from tests.tasks.sources.reading import upload

GOOD = 500


def read_all(source: Source, target: int) -> list[RawSample | BadRow]:
    """Every row, read as ``scan`` does: its items through JSON, ranges numbered by the ranges before them."""
    found: list[RawSample | BadRow] = []
    lines: Counter[str] = Counter()
    for listed in source.work_items(target):
        item = WorkItem(**json.loads(json.dumps(asdict(listed))))
        file = str(item.locator.get("file"))
        if "start" in item.locator:
            item = replace(item, locator=item.locator | {"row": lines[file] + 1})
        for row in source.read(item):
            if isinstance(row, EndOfRange):
                lines[file] += row.lines
            else:
                found.append(row)
    return found


def fault_of(row: RawSample | BadRow) -> str:
    """The class that a row ends in, its pictures decoded; empty if it is good."""
    if isinstance(row, BadRow):
        return row.error
    for image in row.images:
        if image.data is None:
            return image.error
        try:
            open_image(image.data, 1 << 20)
        except ImageError as e:
            return e.error_class
    return ""


def number_of(row: RawSample) -> int:
    if row.tokens:
        ids = np.frombuffer(row.tokens, "<u2").astype(int)
        number = int(ids[0] - TEXT_START - 300) * 1000 + int(ids[1] - TEXT_START - 300)
        assert ids.tolist() == ids_of_row(number)
        return number
    text = " ".join([*row.captions, *(s.text or "" for s in row.segments)])
    found = re.findall(r"number (-?\d+)\.", text)
    assert len(found) == 1, text
    return int(found[0])


@pytest.mark.parametrize("name", FORMATS)
def test_one_bad_row_in_a_hundred(name: str, tmp_path: Path) -> None:
    made = FORMATS[name]
    count = max(GOOD // 99 + 1, len(made.bad))
    bad = [made.bad[k % len(made.bad)] for k in range(count)]
    config, expected = made.make(tmp_path, GOOD, bad)
    rows = read_all(open_source(config), 100)
    good = [r for r in rows if isinstance(r, RawSample) and not fault_of(r)]
    assert sorted(map(number_of, good)) == list(range(GOOD))
    assert len({r.key for r in rows if isinstance(r, RawSample)}) == sum(isinstance(r, RawSample) for r in rows)
    reported = [Expected(r.file, r.row, fault_of(r)) for r in rows if fault_of(r)]
    assert sorted(reported) == sorted(expected)
    assert len(rows) == GOOD + count
    assert len({(r.file, r.row) for r in rows}) == len(rows)
    assert all(e.error in FAULTS for e in reported if e.error != "not-an-image")


@pytest.mark.parametrize("name", FORMATS)
def test_items_and_samples_are_the_same_every_time(name: str, tmp_path: Path) -> None:
    config, _ = FORMATS[name].make(tmp_path, 60, FORMATS[name].bad[:1])
    one, two = open_source(config), open_source(config)
    assert one.digest() == two.digest()
    assert list(one.work_items(20)) == list(two.work_items(20))
    assert read_all(one, 20) == read_all(two, 20)
    keys = [r.key for r in read_all(one, 20) if isinstance(r, RawSample)]
    assert sorted(keys) == sorted(r.key for r in read_all(one, 7) if isinstance(r, RawSample))


def test_scan_puts_each_into_quarantine(tmp_path: Path, make_context: MakeContext) -> None:  # noqa: F811
    """Items are larger than the files, so that rows are known while a file is scanned."""
    made = {}
    for name, each in FORMATS.items():
        source = name.replace(".", "-")
        made[source] = each.make(tmp_path / source, 20, each.bad, source)
    sources = [config.model_dump(exclude_none=True) for config, _ in made.values()]
    context = make_context("scan", sources, scan={"item_samples": 10_000})
    scan.run(context, workers=0)
    found: dict[str, list[Expected]] = {name: [] for name in made}
    kept: Counter[str] = Counter()
    for path in context.store().path("parts").glob("*.parquet"):
        source = path.name.rpartition("-")[0]
        for row in pq.read_table(path).to_pylist():
            if path.name.endswith(".quarantine.parquet"):
                found[source].append(Expected(row["file"], row["row"], row["error"]))
            else:
                kept[source] += row["state"] == "kept"
    assert {name: sorted(rows) for name, rows in found.items()} == {n: sorted(f) for n, (_, f) in made.items()}
    assert kept == dict.fromkeys(made, 20)


def test_every_reader_of_files_is_tried() -> None:
    embedded = {n for n in READERS if n.startswith(("emoji", "python"))}
    assert {f.type for f in FORMATS.values()} == set(READERS) - embedded


@pytest.mark.parametrize("name", FORMATS)
def test_another_storage_than_a_disk_gives_the_same(name: str, tmp_path: Path) -> None:
    _read_elsewhere(name, tmp_path, f"memory://formats-{name}")


@pytest.mark.parametrize(
    "name", ["webdataset.zst", "img2dataset-files", "pairs-parquet-path", "obelics", "html", "markdown"]
)
def test_s3_gives_the_same(name: str, tmp_path: Path, s3_bucket: str) -> None:
    _read_elsewhere(name, tmp_path, s3_bucket)


def _read_elsewhere(name: str, folder: Path, root: str) -> None:
    config, _ = FORMATS[name].make(folder, 20, FORMATS[name].bad)
    upload(root, folder)
    path = f"{root}/{Path(str(config.path)).relative_to(folder).as_posix()}"
    far = open_source(config.model_copy(update={"path": path}))
    here = [(r.file, r.row, fault_of(r)) for r in read_all(open_source(config), 10)]
    assert [(r.file, r.row, fault_of(r)) for r in read_all(far, 10)] == here
