from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from infra.errors import RecipeError, ResourceError
from infra.store.commit import entry
from infra.store.manifest import PartManifest
from tasks import repair
from tasks.addresses import addresses_of
from tasks.context import StepContext
from tasks.documents import run as documents
from tasks.encode import run as encode
from tasks.mix import run as mix
from tasks.recipe import Recipe
from tasks.verify import Damage, verify
from tests.tasks.data_run import locked_elsewhere

Toy = tuple[Path, Recipe]


@pytest.fixture
def workdir(toy: Toy, tmp_path: Path) -> Path:
    """A copy of the toy run that may be damaged."""
    return Path(shutil.copytree(toy[0], tmp_path / "toy"))


def find(workdir: Path, pattern: str) -> Path:
    (found,) = workdir.glob(pattern)
    return found


def flip(path: Path, place: int = -30) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def damage(workdir: Path, **more: str) -> list[Damage]:
    return verify(addresses_of(workdir), processes=1, **more).damage


def brief(found: list[Damage]) -> list[tuple[str, str, str, str]]:
    return [(d.step, d.part, d.file.rpartition("/")[2], d.what) for d in found]


def shown(workdir: Path, found: list[Damage]) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    verdict = verify(addresses_of(workdir), processes=1)
    assert verdict.damage == found
    for piece in repair.render(addresses_of(workdir), verdict):
        console.print(piece)
    return " ".join(console.export_text().split())


def test_a_whole_run_is_whole_whatever_reads_it(toy: Toy) -> None:
    here, elsewhere = (verify(addresses_of(toy[0]), processes=n) for n in (1, 2))
    assert here.damage == []
    assert here.leftovers == []
    assert here.parts == 67
    assert here.bytes > 1_000_000
    assert here == elsewhere
    assert verify(addresses_of(toy[0]), step="encode", source="words", processes=1).parts == 2


@pytest.mark.parametrize(
    ("pattern", "step", "part"),
    [
        ("scan/*/parts/shapes-000000.quarantine.parquet", "scan", "shapes-000000"),
        ("encode/*/parts/shapes-000001.parquet", "encode", "shapes-000001"),
        ("tokenize/*/parts/talks-000000.parquet", "tokenize", "talks-000000"),
        ("mix/*/parts/stages/stage-1/seq-000000.u16", "mix", "stages-stage-1-000000"),
        ("mix/*/parts/finetune/epoch-0/seq-000000.loss", "mix", "finetune-epoch-0-000000"),
        ("mix/*/plan.json", "mix", ""),
        ("scan/*/items.jsonl", "scan", ""),
        ("pretrain/*/model.safetensors", "pretrain", ""),
    ],
)
def test_a_flipped_bit_a_cut_file_and_a_missing_one(workdir: Path, pattern: str, step: str, part: str) -> None:
    path = find(workdir, pattern)
    whole = path.read_bytes()
    flip(path, len(whole) // 2)
    assert brief(damage(workdir, step=step)) == [(step, part, path.name, "sha256")]
    path.write_bytes(whole[:-3])
    assert brief(damage(workdir, step=step)) == [(step, part, path.name, "size")]
    path.unlink()
    assert brief(damage(workdir, step=step)) == [(step, part, path.name, "missing")]
    path.write_bytes(whole)
    assert damage(workdir, step=step) == []


def test_what_does_not_belong(workdir: Path) -> None:
    parts = find(workdir, "encode/*/parts")
    (parts / "words-000009.parquet").write_bytes(b"of a killed writer")
    verdict = verify(addresses_of(workdir), processes=1)
    assert verdict.damage == []
    assert verdict.leftovers == [f"encode/{parts.parent.name}/parts/words-000009.parquet"]
    (parts / "words-000009.json").write_bytes((parts / "words-000001.json").read_bytes())
    found = [f[1:] for f in brief(damage(workdir))]
    assert ("words-000009", "words-000009.json", "unlisted") in found
    assert ("words-000009", "words-000009.json", "manifest") in found, "it says that it is another part's"


def test_a_manifest_that_was_changed(workdir: Path) -> None:
    path = find(workdir, "tokenize/*/parts/words-000000.json")
    text = path.read_text()
    manifest = json.loads(text)
    manifest["tokens"]["text"] += 1
    path.write_text(json.dumps(manifest))
    assert brief(damage(workdir)) == [("tokenize", "", "manifest.json", "digest")]
    path.write_text(text.replace('"format"', '"former"'))
    assert ("tokenize", "words-000000", "words-000000.json", "manifest") in brief(damage(workdir))
    path.unlink()
    assert brief(damage(workdir)) == [("tokenize", "words-000000", "words-000000.json", "missing")]


def rewrite(workdir: Path, step: str, part: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Another table under a part's name, with a manifest whose sha256 fits it."""
    path = find(workdir, f"{step}/*/parts/{part}.parquet")
    pq.write_table(change(pq.read_table(path)), path)
    manifest = path.with_suffix(".json")
    old = PartManifest.load(manifest.read_bytes(), "")
    files = [entry(f.name, path.read_bytes()) if f.name == path.name else f for f in old.files]
    manifest.write_bytes(old.model_copy(update={"files": files}).dump())


def test_tables_that_hold_something_else(workdir: Path) -> None:
    rewrite(workdir, "encode", "words-000000", lambda t: t.slice(1))
    rewrite(workdir, "scan", "words-000000", lambda t: t.replace_schema_metadata({"calumma.format": "calumma-scan 99"}))
    rewrite(
        workdir,
        "tokenize",
        "shapes-000000",
        lambda t: t.set_column(8, t.schema.field(8), t["lengths"].take(pa.array(range(11, -1, -1)))),
    )

    def short_codes(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0]["images"][0]["codes"] = b"\0\0"
        return pa.Table.from_pylist(rows, schema=table.schema)

    rewrite(workdir, "encode", "stories-000000", short_codes)
    found = {(d.step, d.part): d for d in damage(workdir) if d.part}
    assert found["encode", "words-000000"].what == "rows"
    assert found["encode", "words-000000"].expected == "12, as the ledger says"
    assert found["scan", "words-000000"].what == "table"
    assert "this Calumma reads up to" in found["scan", "words-000000"].found
    assert found["encode", "stories-000000"].what == "codes"
    assert found["tokenize", "shapes-000000"].what == "codes"
    assert len(found) == 4


def test_repair_has_just_the_damaged_parts_made_again(workdir: Path, toy: Toy) -> None:
    for pattern in ("encode/*/parts/shapes-000001.parquet", "mix/*/parts/stages/stage-1/seq-000000.starts"):
        flip(find(workdir, pattern))
    find(workdir, "tokenize/*/parts/words-000001.json").unlink()
    found = damage(workdir)
    assert "Have the damaged parts made again: calumma verify --repair" in shown(workdir, found)
    done = {r.step: r for r in repair.repair(addresses_of(workdir), found)}
    assert done["encode"].parts == ("shapes-000001",)
    assert done["encode"].later[:2] == ("tokenize", "mix")
    assert done["tokenize"].parts == ("words-000001",)
    assert not list(workdir.glob("encode/*/manifest.json"))
    kept = {p: p.stat().st_mtime_ns for p in workdir.glob("*/*/parts/*.parquet") if "000000" in p.name}
    for step, run in (("encode", encode.run), ("tokenize", documents.run), ("mix", mix.run)):
        run(StepContext(toy[1], str(workdir), step, "again"), workers=0)
    assert damage(workdir) == [], "the same bytes as before: what follows fits"
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    for path in toy[0].glob("*/*/parts/*"):
        if path.is_file():
            assert (workdir / path.relative_to(toy[0])).read_bytes() == path.read_bytes()


def test_repair_where_nothing_says_which_part_it_was(workdir: Path) -> None:
    path = find(workdir, "tokenize/*/parts/words-000000.json")
    path.write_text(path.read_text().replace('"facts": {', '"facts": {"more": 1,'))
    (one,) = repair.repair(addresses_of(workdir), damage(workdir))
    assert len(one.parts) == 8


def test_what_was_trained_is_left_alone(workdir: Path) -> None:
    flip(find(workdir, "pretrain/*/model.safetensors"))
    found = damage(workdir)
    assert repair.repair(addresses_of(workdir), found) == []
    assert find(workdir, "pretrain/*/manifest.json").exists()
    text = shown(workdir, found)
    assert "pretrain is trained" in text
    assert "(finetune, evaluate, export, report)" in text


def test_repair_is_refused_while_a_run_is_on(workdir: Path) -> None:
    flip(find(workdir, "encode/*/parts/shapes-000001.parquet"))
    found = damage(workdir)
    with locked_elsewhere(workdir), pytest.raises(ResourceError, match="another run is active"):
        repair.repair(addresses_of(workdir), found)
    assert find(workdir, "encode/*/manifest.json").exists()


def test_a_step_under_way_is_looked_at_as_far_as_it_is(workdir: Path) -> None:
    find(workdir, "mix/*/manifest.json").unlink()
    find(workdir, "mix/*/parts/stages/stage-1/sequences.json").unlink()
    find(workdir, "encode/*/manifest.json").unlink()
    find(workdir, "encode/*/parts/words-000001.json").unlink()
    assert damage(workdir) == []
    with pytest.raises(RecipeError, match="--step nothing: no such step"):
        damage(workdir, step="nothing")
    assert repair.repair(addresses_of(workdir), []) == []


@pytest.mark.parametrize(
    ("step", "part", "source"),
    [("tokenize", "talks-000000", "talks"), ("mix", "stages-stage-1-000000", None)],
)
def test_data_whose_manifest_is_missing_are_no_leftovers(
    workdir: Path, step: str, part: str, source: str | None
) -> None:
    find(workdir, f"{step}/*/parts/{part}.json").unlink()
    found = damage(workdir)
    assert brief(found) == [(step, part, f"{part}.json", "missing")]
    assert verify(addresses_of(workdir), processes=1).leftovers == []
    assert f"{step} {part}: the part's manifest is missing" in shown(workdir, found)
    assert "killed run" not in shown(workdir, found)
    if source is not None:
        assert brief(verify(addresses_of(workdir), source=source, processes=1).damage) == brief(found)


def test_a_printed_command_can_be_copied(workdir: Path) -> None:
    moved = workdir.rename(workdir.parent / "a work folder")
    (find(moved, "encode/*/parts") / "words-000009.parquet").write_bytes(b"of a killed writer")
    assert f"calumma clean '{moved}' --yes" in shown(moved, [])
