from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows.local import run_locally
from infra.errors import ResourceError, StoreError
from infra.storage import Storage
from infra.store.commit import commit_part, load_own_manifest
from infra.store.manifest import PartManifest
from tasks import clean as cleaning
from tasks.addresses import addresses_of
from tasks.clean import Waste, clean, render
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe, load_recipe
from tasks.verify import verify
from tests.tasks import data_run
from tests.tasks.data_run import locked_elsewhere

Toy = tuple[Path, Recipe]
OLD = "0123456789ab"


@pytest.fixture
def workdir(toy: Toy, tmp_path: Path) -> Path:
    """A copy of the toy run, its recipe pointing to the same sources."""
    return Path(shutil.copytree(toy[0], tmp_path / "toy"))


def put(path: Path, data: str = "old", hours: float = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data)
    os.utime(path, (time.time() - 3600 * hours,) * 2)
    return path


def litter(workdir: Path) -> set[str]:
    """Everything that may go; the paths that :func:`clean` should name."""
    parts = next(workdir.glob("encode/*/parts"))
    put(workdir / "encode" / OLD / "parts" / "shapes-000000.parquet", "x" * 1000)
    put(workdir / "mix" / OLD / "manifest.json")
    put(parts / ".aside-0123")
    put(workdir / ".aside-4567")
    put(parts / "shapes-000044.parquet")
    put(workdir / "runs" / "jobs" / f"encode-{OLD}{'0' * 20}-1" / "log.txt")
    put(workdir / "runs" / "jobs" / f"encode-{OLD}{'0' * 20}-r1-2" / "log.txt")
    here = parts.relative_to(workdir).as_posix()
    return {
        *(f"encode/{OLD}", f"mix/{OLD}", f"{here}/.aside-0123", ".aside-4567", f"{here}/shapes-000044.parquet"),
        *(f"runs/jobs/encode-{OLD}{'0' * 20}-1", f"runs/jobs/encode-{OLD}{'0' * 20}-r1-2"),
    }


def tree(workdir: Path) -> set[str]:
    return {p.relative_to(workdir).as_posix() for p in workdir.rglob("*") if p.is_file() and p.name != "lock"}


def test_it_names_what_would_go_and_touches_nothing(workdir: Path) -> None:
    expected, before = litter(workdir), tree(workdir)
    found = clean(workdir)
    assert {w.path for w in found.waste} == expected
    assert next(w.bytes for w in found.waste if w.path == f"encode/{OLD}") == 1000
    assert tree(workdir) == before
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for piece in render(found, deleted=False):
        console.print(piece)
    text = console.export_text()
    assert "Nothing was touched: add --yes" in text
    assert "1,018 bytes" in text


def test_what_is_left_is_a_whole_run(workdir: Path, toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(workdir)
    litter(workdir)
    clean(workdir, delete=True)
    assert tree(workdir) == before
    assert not (workdir / "encode" / OLD).exists()
    assert clean(workdir).waste == ()
    verdict = verify(addresses_of(workdir), processes=1)
    assert (verdict.damage, verdict.leftovers) == ([], [])
    run_locally(str(workdir / "recipe.yaml"), [], str(workdir))
    assert "Nothing to do" in capsys.readouterr().out


def test_another_recipe_can_be_kept(workdir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    changed = load_recipe(workdir / "recipe.yaml", ["scan.held_out=0.5"])
    other.write_text(changed.to_yaml())
    shutil.copyfile(other, workdir / "recipe.yaml")
    gone = {w.path.split("/")[0] for w in clean(workdir).waste if w.kind == "step folder"}
    assert {"scan", "select", "encode", "mix", "report"} <= gone
    warned = clean(workdir).warnings
    assert any(w.startswith("scan: the last recipe addresses scan/") for w in warned)
    old = tmp_path / "old.yaml"
    old.write_text(load_recipe(other, ["scan.held_out=0.25"]).to_yaml())
    found = clean(workdir, [str(old)])
    assert found.waste == ()
    assert len(found.kept) == 12


def test_links_are_not_followed(workdir: Path, tmp_path: Path) -> None:
    precious = put(tmp_path / "precious" / OLD / "data.parquet")
    put(tmp_path / "precious" / ".aside-1")
    (workdir / "encode" / OLD).symlink_to(precious.parent)
    shutil.rmtree(workdir / "export")
    (workdir / "export").symlink_to(tmp_path / "precious")
    next(workdir.glob("encode/*/parts")).joinpath("more").symlink_to(tmp_path / "precious")
    old = put(workdir / "mix" / OLD / "manifest.json").parent
    (old / "elsewhere").symlink_to(tmp_path / "precious")
    found = clean(workdir, delete=True)
    assert [w.path for w in found.waste if w.kind == "step folder"] == [f"mix/{OLD}"]
    assert not old.exists()
    assert precious.read_text() == "old"
    assert (tmp_path / "precious" / ".aside-1").exists()


def test_other_folders_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "encode" / OLD / "holiday.jpg")
    with pytest.raises(StoreError, match="not a work folder"):
        clean(tmp_path, delete=True)
    (tmp_path / "runs").mkdir()
    with pytest.raises(StoreError, match="no run was made in this folder"):
        clean(tmp_path, delete=True)
    assert (tmp_path / "encode" / OLD / "holiday.jpg").exists()
    with pytest.raises(StoreError, match="local work folders"):
        clean("s3://bucket/run")


def test_not_while_a_run_holds_the_folder(workdir: Path) -> None:
    litter(workdir)
    with locked_elsewhere(workdir), pytest.raises(ResourceError, match="another run is active"):
        clean(workdir, delete=True)
    assert (workdir / "encode" / OLD).exists()


def test_checkpoints_and_what_is_not_ours_stay(workdir: Path) -> None:
    step = next(workdir.glob("pretrain/*"))
    mine = [put(step / "checkpoints" / "step-1.json"), put(workdir / "notes.txt"), put(workdir / "encode" / "mine.txt")]
    mine += [put(workdir / "encode" / "not-a-fingerprint" / "x"), put(workdir / "runs" / "jobs" / "notes" / "x")]
    clean(workdir, delete=True)
    assert all(path.exists() for path in mine)


def test_what_a_job_elsewhere_may_be_about_to_name_stays(workdir: Path) -> None:
    """A killed flow's job on a cluster holds no lock of this machine."""
    parts = next(workdir.glob("encode/*/parts"))
    young = [put(parts / name, hours=0.9) for name in (".aside-0123", "shapes-000044.parquet")]
    old = [put(parts / name, hours=1.1) for name in (".aside-4567", "shapes-000045.parquet")]
    found = clean(workdir, delete=True)
    assert (len(found.waste), found.young) == (2, 2)
    assert all(path.exists() for path in young)
    assert not any(path.exists() for path in old)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for piece in render(found, deleted=True):
        console.print(piece)
    assert "2 files are named by no manifest and younger than an hour" in console.export_text()


@pytest.mark.parametrize("late", ["manifest", "file"])
def test_a_part_that_is_committed_meanwhile_stays(workdir: Path, monkeypatch: pytest.MonkeyPatch, late: str) -> None:
    parts = next(workdir.glob("encode/*/parts"))
    store, data = Storage(parts.parent), put(parts / "shapes-000044.parquet")
    own = load_own_manifest(store, 0)
    assert own is not None
    remove = cleaning._remove

    def after_a_commit(root: Path, waste: Waste) -> bool:
        if late == "manifest":
            manifest = PartManifest(step="encode", fingerprint=own.fingerprint, part="shapes-000044", source="shapes")
            commit_part(store, manifest, {data.name: data.read_bytes()})
            os.utime(data, (0, 0))
        else:
            data.write_text("new")
        return remove(root, waste)

    monkeypatch.setattr(cleaning, "_remove", after_a_commit)
    assert [w.path for w in clean(workdir).waste] == [data.relative_to(workdir).as_posix()]
    assert clean(workdir, delete=True).waste == ()
    assert data.exists()


def test_a_model_that_a_retry_left_behind_needs_force(tmp_path: Path) -> None:
    """A rescued row moves ``mix`` and all that follows; until that is made, what is there is all there is."""
    run = data_run.make(tmp_path, "mix")
    model = put(run.workdir / "pretrain" / OLD / "model.safetensors")
    mix = next(run.workdir.glob("mix/*"))
    run.retry()
    found = clean(run.workdir)
    assert {w.path for w in found.waste if w.kind == "step folder"} >= {f"pretrain/{OLD}", f"mix/{mix.name}"}
    before = tree(run.workdir)
    with pytest.raises(ResourceError, match=r"nothing was removed. mix: the last recipe .* add --force"):
        clean(run.workdir, delete=True)
    assert tree(run.workdir) == before
    assert clean(run.workdir, delete=True, force=True).waste == found.waste
    assert not model.exists()


def test_while_a_retry_is_under_way_nothing_of_the_last_run_goes(tmp_path: Path) -> None:
    """Without its manifest the retry counts for nothing, and ``mix`` has the address of before it."""
    run = data_run.make(tmp_path, "mix")
    run.retry()
    new = folder_of("mix", fingerprints(run.recipe, Storage(run.workdir))["mix"])
    put(run.workdir / new / "manifest.json")
    next(run.workdir.glob("tokenize/*/manifest.r1.json")).unlink()
    assert new in {w.path for w in clean(run.workdir).waste}
    with pytest.raises(ResourceError, match=f"retry 1 is under way, which moves mix .* {new}"):
        clean(run.workdir, delete=True)
    assert (run.workdir / new).exists()
