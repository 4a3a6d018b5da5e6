"""``ledger``, ``verify``, ``trace``, ``clean`` and ``browse`` as a user calls them: what they print, and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from tests.tasks import data_run
from tests.tasks.data_run import DataRun


def call(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(w) for w in words])


def flat(result: Result) -> str:
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    return data_run.make(tmp_path_factory.mktemp("commands"), "tokenize")


def test_ledger(run: DataRun) -> None:
    result = call("ledger", run.workdir, "--parts", "--quarantine")
    assert result.exit_code == 0, result.output
    assert "photos-000003 scan 6 → 5 · 1 quarantined (bad-json) | select 5 → 5" in flat(result)
    assert "Closed: 32 parts in 4 steps" in flat(result)
    assert "missing-image │ 1 │ yes" in flat(result)
    found = json.loads(call("ledger", run.workdir, "--json", "--quarantine", "--source", "photos").output)
    assert found["closed"] is True
    assert found["quarantine"]["not-an-image"]["rows"][0]["row"] == data_run.BROKEN + 1


def test_an_open_ledger_is_exit_code_1(tmp_path: Path) -> None:
    run = data_run.make(tmp_path, "select")
    path = next(run.workdir.glob("select/*/parts/texts-000000.json"))
    path.write_text(path.read_text().replace('"in": 7', '"in": 8'))
    result = call("ledger", run.workdir)
    assert result.exit_code == 1
    assert "select texts texts-000000: the ledger is open by +1: 1 rows were lost" in flat(result)
    assert json.loads(call("ledger", run.workdir, "--json").output)["closed"] is False


def test_verify_and_repair(tmp_path: Path) -> None:
    run = data_run.make(tmp_path, "encode")
    assert call("verify", run.workdir).exit_code == 0
    path = next(run.workdir.glob("encode/*/parts/photos-000002.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    result = call("verify", run.workdir, "--step", "encode")
    assert result.exit_code == 1
    assert "1 damaged" in flat(result)
    assert path.name in flat(result)
    result = call("verify", run.workdir, "--repair")
    assert result.exit_code == 0, "the next run makes it again"
    assert "encode: removed the manifests of 1 part (photos-000002) and 1 manifest of the step" in flat(result)
    assert not path.with_suffix(".json").exists()


def test_trace(run: DataRun, tmp_path: Path) -> None:
    result = call("trace", run.workdir, "photos:list.jsonl@0", "--out", tmp_path / "originals")
    assert result.exit_code == 0, result.output
    assert "licence CC BY 4.0" in flat(result)
    assert len(list((tmp_path / "originals").iterdir())) == 1
    narrow = CliRunner(env={"COLUMNS": "40"}).invoke(app, ["trace", str(run.workdir), "photos:list.jsonl@0"])
    assert re.search(r"(?m)^  sha256 [0-9a-f]{64}$", narrow.output)
    result = call("trace", run.workdir, "nothing-of-that-name")
    assert result.exit_code == 1
    assert "error: nothing-of-that-name: no such sample" in flat(result)


def test_clean_asks_first(tmp_path: Path) -> None:
    run = data_run.make(tmp_path, "scan")
    old = run.workdir / "encode" / "0123456789ab"
    old.mkdir(parents=True)
    (old / "x").write_text("x")
    result = call("clean", run.workdir)
    assert result.exit_code == 0, result.output
    assert "Nothing was touched: add --yes" in flat(result)
    assert old.exists()
    result = call("clean", run.workdir, "--yes")
    assert result.exit_code == 1, "encode is not done yet, and this may be what there is of it"
    assert "add --force" in flat(result)
    assert old.exists()
    assert "Removed 1 B (1 bytes) in 1 files" in flat(call("clean", run.workdir, "--yes", "--force"))
    assert not old.exists()
    assert "Nothing to remove" in flat(call("clean", run.workdir, "--yes"))


def test_browse(run: DataRun, tmp_path: Path) -> None:
    result = call("browse", run.workdir, "--part", "texts-000001", "--limit", "3", "--out", tmp_path / "x.html")
    assert result.exit_code == 0, result.output
    assert "open it in a browser" in flat(result)
    assert "3 of 6 samples" in (tmp_path / "x.html").read_text()


def test_what_utf_8_cannot_hold_is_printed_and_written_as_an_escape(tmp_path: Path) -> None:
    lone = r'{"text": "\ud800 lone, é"}'
    run = data_run.make(tmp_path, "encode", more_texts=[lone])
    page = tmp_path / "x.html"
    result = call("browse", run.workdir, "--step", "scan", "--part", "texts-000003", "--out", page)
    assert result.exit_code == 0, result.output
    assert "\\ud800 lone, é" in page.read_text(encoding="utf-8")
    key = f"texts:texts.jsonl@{(tmp_path / 'texts.jsonl').stat().st_size - len(lone.encode()) - 1}"
    for charset, text in (("utf-8", "\\ud800 lone, é"), ("ascii", "\\ud800 lone, \\xe9")):
        result = CliRunner(charset=charset, env={"COLUMNS": "80"}).invoke(app, ["trace", str(run.workdir), key])
        assert result.exit_code == 0, result.output
        assert text in flat(result)


def test_a_page_that_fails_leaves_the_earlier_one(
    run: DataRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "x.html"
    page.write_text("earlier")
    monkeypatch.setattr("tasks.browse.page.browse", lambda *_: "half a page \ud800")
    assert call("browse", run.workdir, "--out", page).exit_code == 1
    assert page.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["x.html"]


@pytest.mark.parametrize("command", ["ledger", "verify", "clean", "browse"])
def test_a_folder_without_a_run_is_a_message(command: str, tmp_path: Path) -> None:
    result = call(command, tmp_path)
    assert result.exit_code == 1
    assert "no run was made in this folder" in flat(result) or "not a work folder" in flat(result)
    assert "Traceback" not in result.output
