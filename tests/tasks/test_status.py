from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from infra.errors import ResourceError, StepFailed, StoreError
from infra.storage import Storage
from tasks.fingerprint import folder_of
from tasks.status import copy_export, job_seconds, last_recipe, render, status_of
from tests.tasks import toy_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to tokenize, as a work folder."""
    folder = tmp_path_factory.mktemp("status")
    recipe = toy_run.make(folder, "tokenize")
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    job = folder / "runs" / "jobs" / "x"
    job.mkdir(parents=True)
    (job / "record.json").write_text('{"fingerprint": "f", "seconds": 2.5}')
    return folder


def shown(workdir: Path, *settings: str) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(status_of(workdir, None, settings)))
    return console.export_text()


def test_it_shows_steps_ledger_and_checkpoints(workdir: Path) -> None:
    status = status_of(workdir)
    done = {s.step for s in status.steps if s.manifest}
    assert {"scan", "select", "encode", "tokenize"} <= done
    assert "mix" not in done
    step = next(s for s in status.steps if s.step == "pretrain")
    checkpoint = workdir / step.folder / "checkpoints" / "step-00000010.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}")
    text = shown(workdir)
    assert "checkpoints/step-00000010.json" in text
    assert "closed" in text
    assert "open by" not in text


def test_it_says_what_a_change_would_redo_and_why(workdir: Path) -> None:
    changed = {s.step: s.changed for s in status_of(workdir, None, ["scan.held_out=0.2"]).steps}
    assert changed["scan"] == ("scan.held_out",)
    assert changed["select"] == ("step scan",)
    assert not any(s.changed for s in status_of(workdir).steps)


def test_times_and_errors(workdir: Path, tmp_path: Path) -> None:
    assert job_seconds(Storage(workdir))["f"] == 2.5
    with pytest.raises(StoreError, match="no run was made"):
        last_recipe(tmp_path)
    with pytest.raises(StepFailed, match="step export is not finished"):
        copy_export(workdir, tmp_path / "out")


def test_an_export_is_copied_once(workdir: Path, tmp_path: Path) -> None:
    step = next(s for s in status_of(workdir).steps if s.step == "export")
    folder = workdir / folder_of("export", step.folder.split("/")[1] + "0" * 20)
    (folder / "transformers").mkdir(parents=True)
    (folder / "transformers" / "config.json").write_text("{}")
    (folder / "manifest.json").write_text(
        '{"format": "calumma-step", "version": 1, "step": "export", "fingerprint": "f"}'
    )
    assert "1 files" in copy_export(workdir, tmp_path / "out")
    with pytest.raises(ResourceError, match="exists already"):
        copy_export(workdir, tmp_path / "out")
