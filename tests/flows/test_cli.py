"""What a user sees when something is wrong: a message that names it, never a stack trace as the only answer."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows import local
from flows.cli import app
from infra.lock import locked


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "no-such-recipe"], "no such recipe file. Built-in recipes:"),
        (["run", "emoji", "--set", "pretrain.bacth=1"], "did you mean 'batch'?"),
        (["run", "emoji", "--only", "encoed"], "no step is named 'encoed'; the steps are scan, select"),
        (["run", "emoji", "--only", "encode"], "step encode reads what select makes, and select is not finished"),
        (["run", "emoji", "--set", "sources.emoji.type=emojis"], "neither one of emoji-pairs"),
        (["run", "emoji", "--set", "sources.emoji.type=no.such:Thing"], "cannot be imported"),
        (["plan", "no-such-recipe"], "no such recipe file"),
        (["status", "empty"], "no run was made in this folder"),
        (["export", "empty", "--out", "x"], "no run was made in this folder"),
        (["generate", "empty", "a prompt"], "no run was made in this folder"),
        (["ui", "empty"], "no run was made in this folder"),
        (["inspect", "empty/nothing.parquet"], "nothing.parquet: no such file"),
    ],
)
def test_errors_are_messages(words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = call(*words)
    shown = " ".join(result.output.split())
    assert result.exit_code == 1, shown
    assert says in shown
    assert "Traceback" not in shown


def test_a_busy_port_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        result = call("ui", tmp_path, "--port", str(s.getsockname()[1]))
    assert result.exit_code == 1
    assert "choose another with --port" in " ".join(result.output.split())


def test_a_second_run_is_told_who_is_first(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path):
            pass  # the same run may take it again
        code = f"from pathlib import Path; from infra.lock import locked; locked(Path({str(tmp_path)!r})).__enter__()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "another run is active in this folder (process " in done.stderr
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_work_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = call("run", "emoji", "--workdir", tmp_path / "file")
    assert result.exit_code == 1
    assert "the work folder cannot be made" in " ".join(result.output.split())


def test_a_fault_of_ours_keeps_its_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(local, "run_locally", broken)
    result = call("run", "emoji", "--workdir", tmp_path)
    assert result.exit_code == 1
    assert "ZeroDivisionError: a fault" in result.output
    assert "Traceback" in (tmp_path / "runs" / "calumma-error.txt").read_text()
