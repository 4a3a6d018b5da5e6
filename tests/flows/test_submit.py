"""Giving a job to Ray: one that is still starting is asked again, one that ended is told from one that refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import submit
from flows.submit import Cluster, run_job
from infra.errors import ResourceError, StepFailed
from infra.storage import Storage
from tasks.recipe import load_recipe

BUSY = RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later..")
EXISTS = RuntimeError("Request failed with status code 500: Job with submission_id x already exists.")


@dataclass
class Jobs:
    """Ray's Jobs API: what each request to take a job is answered with, in turn; None: taken."""

    answers: list[Exception | None]
    asked: list[str] = field(default_factory=list)

    def submit_job(self, *, entrypoint: str, submission_id: str, metadata: dict[str, str]) -> None:
        self.asked.append(submission_id)
        if (answer := self.answers.pop(0)) is not None:
            raise answer


class Local:
    """A local Ray that answers, or does not."""

    def __init__(self, up: bool) -> None:
        self.up = up

    def alive(self) -> bool:
        return self.up


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "AGAIN_S", 0)


def cluster(up: bool = True, *settings: str) -> Cluster:
    local: Any = Local(up)
    return Cluster(load_recipe("emoji", settings), ".", local)


def taken(jobs: Jobs, ray: Cluster) -> bool:
    return submit._taken(jobs, ray, "scan-1", "python -m tasks.job scan", {})


def test_a_ray_that_is_still_starting_is_asked_again() -> None:
    jobs = Jobs([BUSY, BUSY, None])
    assert taken(jobs, cluster())
    assert jobs.asked == ["scan-1"] * 3


def test_an_id_that_another_folder_has_is_not_ours() -> None:
    assert not taken(Jobs([EXISTS]), cluster())


def test_an_id_that_our_own_lost_request_took_is_ours() -> None:
    assert taken(Jobs([BUSY, EXISTS]), cluster())


@pytest.mark.parametrize("answer", [BUSY, ConnectionError("refused"), RuntimeError("node died")])
def test_a_local_ray_that_ended_is_said_to_be_lost(answer: Exception) -> None:
    with pytest.raises(submit._RayLost):
        taken(Jobs([answer]), cluster(up=False))


def test_a_refusal_names_the_job_and_the_reason() -> None:
    with pytest.raises(ResourceError, match="did not take job scan-1: disk quota exceeded"):
        taken(Jobs([RuntimeError("disk quota exceeded")]), cluster())


def test_a_ray_that_stays_busy_is_given_up() -> None:
    with pytest.raises(ResourceError, match="try again later"):
        taken(Jobs([BUSY] * 100_000), cluster(True, "resources.pending_deadline_s=0.01"))


class Ray:
    """A Ray on which each attempt ends as it is told to: with a status and, unless it was killed, a record."""

    def __init__(self, workdir: Path, *ends: tuple[str, dict[str, str] | None]) -> None:
        self.workdir, self.ends = Storage(workdir), list(ends)
        self.submitted: list[str] = []
        self.stopped: list[str] = []
        self.said: list[str] = []

    def list_jobs(self) -> list[Any]:
        return []

    def submit_job(self, *, entrypoint: str, submission_id: str, metadata: dict[str, str]) -> None:
        self.submitted.append(submission_id)
        self.status, record = self.ends.pop(0)
        if record is not None:
            self.workdir.put(f"runs/jobs/{submission_id}/record.json", json.dumps(record).encode())

    def get_job_status(self, job: str) -> Any:
        return SimpleNamespace(value=self.status)

    def get_job_logs(self, job: str) -> str:
        return "a line\n"

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)
        self.status = "STOPPED"

    def run(self, *settings: str) -> Any:
        ray: Any = cluster(True, *settings)
        ray.workdir, ray.client, ray.broken = self.workdir.root, lambda: self, lambda: False
        return run_job(ray, "pretrain", "f", lambda state: self.said.append(state["note"]))


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has a manifest: nothing, but for a job whose record says that it is done."""
    monkeypatch.setattr(submit, "POLL_S", 0)
    found: list[str] = []

    def manifest(store: Storage, retry: int) -> Any:
        records = Path(store.root).parents[1].glob("runs/jobs/*/record.json")
        found[:] = [p.parent.name for p in records if json.loads(p.read_text()).get("state") == "done"]
        return found[0] if found else None

    monkeypatch.setattr(submit, "load_own_manifest", manifest)
    return found


def test_a_job_that_was_killed_or_whose_node_was_taken_away_is_submitted_again(tmp_path: Path, done: list[str]) -> None:
    stopped = ("FAILED", {"state": "stopped"})
    ray = Ray(tmp_path, stopped, ("FAILED", None), stopped, stopped, ("SUCCEEDED", {"state": "done"}))
    assert ray.run("resources.max_failures=1") == "pretrain-f-5"
    assert ray.submitted == [f"pretrain-f-{n}" for n in range(1, 6)]
    assert [note.split(";")[0] for note in ray.said] == [
        *("its job was asked to stop", "its job was killed", "its job was asked to stop", "its job was asked to stop")
    ]


def test_a_job_that_is_killed_too_often_is_given_up(tmp_path: Path, done: list[str]) -> None:
    ray = Ray(tmp_path, *[("FAILED", None)] * 3)
    with pytest.raises(StepFailed, match="was killed 3 times"):
        ray.run("resources.max_failures=2")


@pytest.mark.parametrize(
    ("status", "record", "says"),
    [
        ("STOPPED", {"state": "stopped"}, "its job pretrain-f-1 was stopped"),
        ("STOPPED", None, "its job pretrain-f-1 was stopped"),
        ("FAILED", {"state": "failed", "error": "step pretrain: no room"}, "step pretrain: no room"),
    ],
)
def test_a_job_that_somebody_stopped_or_that_failed_is_not(
    tmp_path: Path, done: list[str], status: str, record: dict[str, str] | None, says: str
) -> None:
    ray = Ray(tmp_path, (status, record))
    with pytest.raises(StepFailed, match=says):
        ray.run()
    assert len(ray.submitted) == 1


def test_an_interrupted_flow_stops_its_job_and_waits_for_its_end(
    tmp_path: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = Ray(tmp_path, ("RUNNING", None))
    looked: list[str] = []

    def status(job: str) -> Any:
        looked.append(ray.status)
        if len(looked) == 3:
            raise KeyboardInterrupt
        if ray.stopped and len(looked) == 6:
            return SimpleNamespace(value="STOPPED")
        return SimpleNamespace(value="RUNNING")

    monkeypatch.setattr(ray, "get_job_status", status)
    with pytest.raises(KeyboardInterrupt):
        ray.run()
    assert ray.stopped == ["pretrain-f-1"]
    assert len(looked) == 6
