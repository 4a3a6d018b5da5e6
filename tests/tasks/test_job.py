"""How a job ends: its exit code and its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.submit import save_recipe
from infra.errors import CalummaError, StepFailed, StepStopped
from infra.storage import Storage
from tasks import job
from tasks.context import StepContext
from tasks.recipe import load_recipe


@pytest.mark.parametrize(
    ("raised", "code", "expected"),
    [
        (StepStopped("step pretrain was stopped on request"), 143, {"state": "stopped"}),
        (StepFailed("no room"), 1, {"state": "failed", "error": "no room"}),
        (TypeError("a fault"), 1, {"state": "failed", "error": "TypeError: a fault"}),
        (None, 0, {"state": "done"}),
    ],
)
def test_what_it_came_to_is_its_exit_code_and_in_its_record(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception | None,
    code: int,
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_step(context: StepContext) -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr(job, "run_step", run_step)
    recipe, store = load_recipe("emoji"), Storage(tmp_path)
    fingerprint = StepContext(recipe, store.root, "pretrain", "one").fingerprint
    words = ["--workdir", store.root, "--recipe", save_recipe(recipe, store), "--fingerprint", fingerprint]
    assert job.main(["pretrain", *words, "--job", "one"]) == code
    record = json.loads(store.get("runs/jobs/one/record.json"))
    assert {key: record[key] for key in ("state", "error") if key in record} == expected
    said = capsys.readouterr().err
    assert ("error: " in said) == (isinstance(raised, CalummaError) and code == 1)
