"""Giving a job to Ray: one that is still starting is asked again, one that ended is told from one that refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from flows import submit
from flows.submit import Cluster
from infra.errors import ResourceError
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
