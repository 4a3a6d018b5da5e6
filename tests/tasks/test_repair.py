"""What was damaged after a retry is made again as it was, and by the command that the message names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from infra.storage import Storage
from infra.store.commit import load_own_manifest, load_step
from tasks import repair
from tasks.addresses import addresses_of
from tasks.documents import run as documents
from tasks.encode import run as encode
from tasks.fingerprint import fingerprints
from tasks.ledger import check_ledger
from tasks.retry import plan_retry
from tasks.scan import run as scan
from tasks.scan import select
from tasks.steps import STORES
from tasks.verify import Damage, unnamed_files, verify
from tests.tasks import data_run
from tests.tasks.data_run import LATE, NAMES, DataRun, picture


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    """A run with two retries: the first one found the late picture still missing."""
    run = data_run.make(tmp_path_factory.mktemp("twice"), "tokenize")
    again(run)
    (run.images / f"{NAMES[LATE]}.png").write_bytes(picture(LATE))
    again(run)
    return run


@pytest.fixture
def run(twice: DataRun, tmp_path: Path) -> DataRun:
    return DataRun(twice.recipe, twice.images, Path(shutil.copytree(twice.workdir, tmp_path / "work")))


def make(run: DataRun, retry: int = 0, steps: tuple[str, ...] = STORES) -> None:
    """The steps that are not finished, as ``calumma run`` (0) or ``calumma retry`` has them made."""
    for step in steps:
        context = run.context(step, retry)
        if load_own_manifest(context.store(), retry) is None:
            if step == "select":
                select.run(context)
            else:
                {"scan": scan.run, "encode": encode.run, "tokenize": documents.run}[step](context, workers=0)


def again(run: DataRun, number: int | None = None) -> None:
    plan = plan_retry(run.context("scan"))
    assert plan is not None
    assert number in (None, plan.number)
    make(run, plan.number, plan.steps)


def find(run: DataRun, pattern: str) -> Path:
    (found,) = run.workdir.glob(pattern)
    return found


def flip(run: DataRun, pattern: str) -> None:
    path = find(run, pattern)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage(run: DataRun) -> list[Damage]:
    return verify(addresses_of(run.workdir), processes=1).damage


def stored(run: DataRun) -> dict[str, bytes]:
    folders = [p for step in STORES for p in (run.workdir / step).rglob("*") if p.is_file()]
    return {p.relative_to(run.workdir).as_posix(): p.read_bytes() for p in folders}


def mend(run: DataRun) -> str:
    """Repairs what is damaged; what was said before and after, in one line."""
    addresses = addresses_of(run.workdir)
    verdict = verify(addresses, processes=1)
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for piece in repair.render(addresses, verdict):
        console.print(piece)
    for piece in repair.render_repair(repair.repair(addresses, verdict.damage)):
        console.print(piece)
    return " ".join(console.export_text().split())


def assert_same(run: DataRun, twice: DataRun) -> None:
    """The same bytes, nothing doubled, the ledger closed, and what follows at the same address."""
    here, there = stored(run), stored(twice)
    assert sorted(here) == sorted(there)
    assert [name for name in here if here[name] != there[name]] == []
    assert damage(run) == []
    assert check_ledger(addresses_of(run.workdir)).faults == []
    assert fingerprints(run.recipe, Storage(run.workdir)) == fingerprints(twice.recipe, Storage(twice.workdir))


@pytest.mark.parametrize("steps", [("scan",), ("select",), ("encode",), ("tokenize",), STORES])
def test_parts_of_before_the_retries(run: DataRun, twice: DataRun, steps: tuple[str, ...]) -> None:
    for step in steps:
        flip(run, f"{step}/*/parts/photos-000001.parquet")
    assert "then calumma run." in mend(run)
    for step in steps:
        assert load_step(run.context(step).store()) is None
        assert (find(run, f"{step}/*/manifest.r1.json")).exists()
    make(run)
    assert_same(run, twice)
    assert plan_retry(run.context("scan")) is None


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("steps", [("scan",), ("encode",), STORES])
def test_parts_of_a_retry(run: DataRun, twice: DataRun, steps: tuple[str, ...], number: int) -> None:
    for step in steps:
        flip(run, f"{step}/*/parts/photos-000000.r{number}.parquet")
    said = mend(run)
    assert ("scan photos-000000.r1: with rows in quarantine whose fault may have passed" in said) == (
        number == 1 and "scan" in steps
    ), "the second one found the picture"
    assert "then calumma retry." in said
    assert "made again by: calumma retry." in said
    assert check_ledger(addresses_of(run.workdir)).faults == [], "what is to be made again is no fault"
    late = run.images / f"{NAMES[LATE]}.png"
    if number == 1:  # the world as it was then
        late.unlink()
    try:
        again(run, number)
    finally:
        late.write_bytes(picture(LATE))
    assert_same(run, twice)


def test_both_in_one_store_one_after_the_other(run: DataRun, twice: DataRun) -> None:
    flip(run, "tokenize/*/parts/photos-000001.parquet")
    flip(run, "tokenize/*/parts/photos-000000.r2.parquet")
    flip(run, "scan/*/parts/photos-000000.r2.parquet")
    said = mend(run)
    assert "then calumma run --to tokenize, then calumma verify --repair once more, then calumma retry." in said
    make(run)
    assert "then calumma retry." in mend(run)
    again(run, 2)
    assert_same(run, twice)


@pytest.mark.parametrize("name", ["items.jsonl", "rows.json"])
def test_a_damaged_step_file_is_not_signed(run: DataRun, twice: DataRun, name: str) -> None:
    path = find(run, f"scan/*/{name}")
    path.write_bytes(path.read_bytes().replace(b"}", b"} ", 1))
    assert [d.what for d in damage(run)] == ["size"]
    assert "then calumma run." in mend(run)
    assert not path.exists()
    make(run)
    assert_same(run, twice)


def test_the_last_retrys_list_is_made_anew_and_an_earlier_one_is_not(run: DataRun, twice: DataRun) -> None:
    flip(run, "scan/*/items.r2.jsonl")
    (found,) = damage(run)
    assert (found.step, found.what) == ("scan", "sha256")
    assert "then calumma retry." in mend(run)
    again(run, 2)
    assert_same(run, twice)
    flip(run, "scan/*/items.r1.jsonl")
    said = mend(run)
    assert "items.r1.jsonl lists what a retry read again, and later retries followed it" in said
    assert "scan: nothing was removed" in said
    assert find(run, "scan/*/manifest.r1.json").exists()
    assert repair.by_hand(addresses_of(run.workdir), damage(run)) == damage(run)


def test_a_store_that_was_finished_after_the_first_retry_has_a_gap(run: DataRun) -> None:
    for name in ("manifest.json", "manifest.r1.json", "manifest.r2.json"):
        find(run, f"tokenize/*/{name}").unlink()
    for path in run.workdir.glob("tokenize/*/parts/*.r2.*"):
        path.unlink()
    for step in STORES[:3]:
        find(run, f"{step}/*/manifest.r2.json").unlink()
    make(run)
    again(run, 2)
    store = run.context("tokenize").store()
    assert [n for n in store.list(suffix=".json") if n.startswith("manifest")] == ["manifest.json", "manifest.r2.json"]
    assert damage(run) == []
    assert unnamed_files(store) == []
    assert check_ledger(addresses_of(run.workdir)).faults == []
    whole = stored(run)
    flip(run, "tokenize/*/parts/photos-000000.r2.parquet")
    assert "then calumma retry." in mend(run)
    assert not store.exists("manifest.r2.json")
    again(run, 2)
    assert stored(run) == whole
    flip(run, "tokenize/*/parts/photos-000000.r1.parquet")
    assert "then calumma run." in mend(run), "it belongs to the step itself"
    make(run)
    assert stored(run) == whole
    assert damage(run) == []
