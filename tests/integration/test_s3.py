"""The whole pipeline with its work folder on a real S3 server that falters, its training killed in the middle."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from infra.home import local_side
from infra.processes import MARK
from infra.ray_local import recorded_ray
from infra.storage import Storage
from infra.store.commit import load_step
from model.training.checkpoint import list_checkpoints
from model.training.monitors import read_metrics
from tasks.fingerprint import fingerprints, folder_of
from tasks.steps import NAMES
from tests.integration import toy
from tests.s3.proxy import Proxy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
TIMED = ("metrics.jsonl", "curves.png")
"""Files of the trainings that hold how fast they went."""


def training_workers(workdir: str) -> list[psutil.Process]:
    """The processes that this run trains with."""
    record = recorded_ray(local_side(workdir))
    found = []
    for process in toy.processes("RayTrainWorker"):
        with suppress(psutil.Error):
            if record is not None and any(p.environ().get(MARK) == record.mark for p in process.parents()):
                found.append(process)
    return found


def test_a_whole_run_on_s3_with_its_training_killed(
    undisturbed: Path, s3_bucket: str, faulty_s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    workdir, recipe = f"{s3_bucket}/work", toy.toy_recipe()
    bursts = [fault for _ in range(2) for fault in ("slow_down", "error", "lose", "cut", "refuse")]
    for fault in bursts:
        faulty_s3.add(fault, times=3, after=30)
    prints = fingerprints(recipe)
    here, there = (
        {step: Storage(root).sub(folder_of(step, prints[step])) for step in NAMES} for root in (undisturbed, workdir)
    )

    flow = toy.start(workdir)
    try:
        job, victims = f"runs/jobs/pretrain-{prints['pretrain']}-1", list[psutil.Process]()

        def trains() -> bool:  # looked for before the moment, as looking takes as long as some steps
            if Storage(workdir).exists(f"{job}/submitted"):
                victims[:] = training_workers(workdir)
            return len(victims) == recipe.resources.train_workers or flow.poll() is not None

        toy.wait_for(trains, 800, "a training")
        faulty_s3.add("lose", method="PUT", path="pretrain/.*checkpoints", times=2)
        faulty_s3.add("cut", method="GET", path="pretrain/.*checkpoints/.*safetensors", times=2)
        toy.wait_for(lambda: bool(list_checkpoints(there["pretrain"])) or flow.poll() is not None, 300, "a checkpoint")
        assert load_step(there["pretrain"]) is None, "the training was over before it was killed"
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        output, _ = flow.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(flow.pid, signal.SIGTERM)
    assert flow.returncode == 0, output
    assert faulty_s3.done == {"slow_down": 6, "error": 6, "lose": 8, "cut": 8, "refuse": 6}
    assert f"Report: {there['report'].url('report.html')}" in output
    assert "<svg" in there["report"].get("report.html").decode()

    for step in NAMES[:-1]:
        ours, theirs = load_step(there[step]), load_step(here[step])
        assert ours is not None
        assert theirs is not None
        assert all(rows.balance == 0 for rows in ours.rows.values())
        assert ours.parts_digest == theirs.parts_digest, step
        assert [f.name for f in ours.files] == [f.name for f in theirs.files], step
        assert [f for f in ours.files if f.name not in TIMED] == [f for f in theirs.files if f.name not in TIMED], step

    assert "starting them again (1)" in Storage(workdir).get(f"{job}/log.txt").decode()
    lines, undisturbed_lines = read_metrics(there["pretrain"]), read_metrics(here["pretrain"])
    assert [line["step"] for line in lines] == list(range(1, len(undisturbed_lines) + 1))
    assert [line["loss"] for line in lines] == [line["loss"] for line in undisturbed_lines]
    starts = there["pretrain"].list("tensorboard")
    assert len(starts) == 2, "event files of both starts"
    assert json.loads(there["pretrain"].get("training.json"))["steps"] == len(lines)

    assert "Nothing to do: 12 of 12" in toy.run(workdir)
    assert not list((tmp_path / "state").rglob("ray.json")), "the local Ray of a run on S3 is ended, too"
