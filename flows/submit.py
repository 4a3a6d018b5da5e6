"""One path for every step: submit its Ray job, or attach to the one that runs; follow it; stop it when we are stopped.

A job's id is step, fingerprint and attempt. Only the step's manifest says done: a job that succeeded without one has
failed, and one that was killed after writing it has succeeded.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from infra.errors import ResourceError, StepFailed
from infra.home import local_side
from infra.ray_local import LocalRay, end_ray, start_ray
from infra.storage import Storage
from infra.store.commit import load_own_manifest
from infra.store.manifest import StepManifest
from tasks.fingerprint import fingerprint_of, folder_of
from tasks.progress import read_progress
from tasks.recipe import Recipe
from tasks.train.launch import Deaths

POLL_S = 0.25
LOOK_S = 3.0
AGAIN_S = 1.0
"""Between two tries to submit a job to a Ray that has just started and says "try again later"."""
STOP_S = 60
"""How long a job that is asked to stop may go on before Ray kills it: a training's step and its checkpoint."""
JOB_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # with several processes a core, more threads only spin
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S),  # Ray's own default is 3
}
"""What every job inherits on a local Ray; on a cluster its image and pools decide."""

Report = Callable[[dict[str, Any]], None]


class _RayLost(Exception):
    """The local Ray ended while it was asked to take a job."""


@dataclass
class Cluster:
    """The Ray that runs a pipeline's jobs: one given by address, or a local one started on first use."""

    recipe: Recipe
    workdir: str
    _local: LocalRay | None = None
    _client: Any = None
    _looked: float = 0.0

    def client(self) -> Any:
        """A JobSubmissionClient; starts the local Ray, or starts it again if it died."""
        from ray.job_submission import JobSubmissionClient

        if self._client is not None and (self._local is None or self._local.alive()):
            return self._client
        address = self.recipe.resources.ray_address
        if address is None:
            resources = self.recipe.resources
            cpus = max(2, resources.train_workers, round(resources.data_workers * resources.data_cpus + 0.5))
            self._local = start_ray(local_side(self.workdir), cpus, JOB_ENVIRONMENT)
            address = self._local.address
        try:
            self._client = JobSubmissionClient(address)
        except Exception as e:
            raise ResourceError(
                f"resources.ray_address: no Ray Jobs API answers at {address} ({e}). Correct it, or leave it out for a "
                "local Ray. A cluster that asks for a token takes it from RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
            ) from e
        return self._client

    def broken(self) -> bool:
        """Whether the local Ray lost its node; its Jobs API may still say that a job runs. Looks every few seconds."""
        now = time.monotonic()
        if self._local is None or now - self._looked < LOOK_S:
            return False
        self._looked = now
        return self.lost()

    def lost(self) -> bool:
        """Whether there is a local Ray and it no longer answers; looks at once."""
        return self._local is not None and not self._local.alive()

    def close(self) -> None:
        """Ends the folder's local Ray: this run's, or what a killed run left. The caller holds the folder's lock."""
        self._client = self._local = None
        if self.recipe.resources.ray_address is None:
            end_ray(local_side(self.workdir))


def save_recipe(recipe: Recipe, workdir: Storage) -> str:
    """Keeps the resolved recipe where jobs find it; its name in the work folder."""
    text = recipe.to_yaml()
    name = f"runs/recipes/{fingerprint_of(text)[:12]}.yaml"
    workdir.put_new(name, text.encode())
    return name


def run_job(cluster: Cluster, step: str, fingerprint: str, report: Report, retry: int = 0) -> StepManifest:
    """Brings one step to its manifest, through as many attempts as the recipe allows; ``report`` hears progress.

    With ``retry`` it is what that retry adds to the step, and the manifest of just that.

    StepFailed with the job's own message when it fails by itself; a job that was killed is submitted again.
    """
    workdir = Storage(cluster.workdir)
    store = workdir.sub(folder_of(step, fingerprint))
    recipe_name = save_recipe(cluster.recipe, workdir)
    deaths = Deaths(store)
    while True:
        if (done := load_own_manifest(store, retry)) is not None:
            return done
        client = cluster.client()
        prefix = f"{step}-{fingerprint}-" + (f"r{retry}-" if retry else "")
        place = ["--workdir", cluster.workdir, "--recipe", recipe_name, "--fingerprint", fingerprint]
        place += ["--retry", str(retry)] if retry else []
        job, status = prefix, "LOST"
        with suppress(_RayLost):
            job = _attach(cluster, client, workdir, prefix) or _submit(client, cluster, workdir, step, prefix, place)
            status = _follow(cluster, client, workdir, job, report)
        if (done := load_own_manifest(store, retry)) is not None:
            return done
        record = json.loads(workdir.get_or_none(f"runs/jobs/{job}/record.json") or b"{}")
        if status == "STOPPED":
            raise StepFailed(f"step {step}: its job {job} was stopped. Run again to go on from what is committed.")
        if record.get("state") == "stopped":
            # Not by us, nor through Ray, which would say so: its node is taken away, and it goes on elsewhere.
            report({"note": "its job was asked to stop; submitting it again"})
            continue
        if "error" in record:
            said = record["error"].removeprefix(f"step {step}: ")
            raise StepFailed(f"step {step}: {said}\nIts log: {workdir.url(f'runs/jobs/{job}/log.txt')}")
        if (
            status != "LOST" and (said := _last_words(client, job)) is not None
        ):  # it could not even write its record: a full disk, say
            raise StepFailed(f"step {step}: {said}")
        if deaths.add() > cluster.recipe.resources.max_failures:
            raise StepFailed(
                f"step {step}: its job was killed {deaths.count} times (resources.max_failures is "
                f"{cluster.recipe.resources.max_failures}); often a lack of memory. "
                f"Its log: {workdir.url(f'runs/jobs/{job}/log.txt')}"
            )
        report({"note": "its job was killed; submitting it again"})


def _last_words(client: Any, job: str) -> str | None:
    """The error a job printed before it ended by itself; None where it printed none or cannot be asked."""
    with suppress(Exception):
        lines = [line for line in client.get_job_logs(job).splitlines() if line.startswith("error: ")]
        return str(lines[-1].removeprefix("error: ")) if lines else None
    return None


def _attach(cluster: Cluster, client: Any, workdir: Storage, prefix: str) -> str | None:
    """The id of an attempt that is pending or running on this cluster: ``prefix`` and its number."""
    try:
        jobs = client.list_jobs()
    except (RuntimeError, OSError) as e:
        if cluster.lost():
            raise _RayLost from e
        raise ResourceError(f"Ray did not list its jobs: {str(e).splitlines()[0]}") from e
    known = [
        d
        for d in jobs
        if (name := d.submission_id or "").startswith(prefix)
        and name.removeprefix(prefix).isdigit()
        and (d.metadata or {}).get("workdir") == workdir.root
    ]
    alive = [d.submission_id for d in known if str(d.status.value) in ("PENDING", "RUNNING")]
    return str(alive[-1]) if alive else None


def _submit(client: Any, cluster: Cluster, workdir: Storage, step: str, prefix: str, place: list[str]) -> str:
    python = sys.executable if cluster.recipe.resources.ray_address is None else "python"
    for attempt in count(1):
        job = f"{prefix}{attempt}"
        # Creating the record claims the attempt's number: an id can be used once, even after a failure. The token
        # tells our record from another's, should the storage's answer get lost and the request be sent again.
        if not workdir.put_new(f"runs/jobs/{job}/submitted", f"{uuid.uuid4()}\n".encode()):
            continue
        entrypoint = shlex.join([python, "-m", "tasks.job", step, *place, "--job", job])
        metadata = {"step": step, "workdir": cluster.workdir}
        if _taken(client, cluster, job, entrypoint, metadata):
            return job
    raise AssertionError("count() does not end")


def _taken(client: Any, cluster: Cluster, job: str, entrypoint: str, metadata: dict[str, str]) -> bool:
    """Whether Ray took the job; False if another work folder's job on the same cluster has its id.

    A Ray that has just started has no agent yet to run jobs and says so; it is asked again.
    """
    deadline = time.monotonic() + cluster.recipe.resources.pending_deadline_s
    for tried in count():
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job, metadata=metadata)
            return True
        except (RuntimeError, OSError) as e:
            if "already exists" in str(e):
                return tried > 0  # an earlier try's answer was lost
            if cluster.lost():
                raise _RayLost from e
            if "try again later" not in str(e) or time.monotonic() > deadline:
                raise ResourceError(f"Ray did not take job {job}: {str(e).splitlines()[0]}") from e
        time.sleep(AGAIN_S)
    raise AssertionError("count() does not end")


def _follow(cluster: Cluster, client: Any, workdir: Storage, job: str, report: Report) -> str:
    """Reports until the job ends; its last status, ``LOST`` if its Ray died. Stops the job if we are interrupted."""
    submitted, deadline_s = time.monotonic(), cluster.recipe.resources.pending_deadline_s
    status = "PENDING"
    try:
        while status in ("PENDING", "RUNNING"):
            time.sleep(POLL_S)
            if (state := read_progress(workdir, job)) is not None:
                report(state)
            if cluster.broken():
                return "LOST"
            try:
                status = str(client.get_job_status(job).value)
            except (RuntimeError, OSError):  # the dashboard died with its node
                return "LOST"
            if status == "PENDING" and time.monotonic() - submitted > deadline_s:
                raise ResourceError(
                    f"job {job} did not start within {deadline_s:g} s (resources.pending_deadline_s): the "
                    "cluster has no free resources of the kind it asks for. See Ray's dashboard."
                )
    except BaseException:
        with suppress(Exception):
            client.stop_job(job)
            report({"note": "stopping its job"})
            _wait_for_end(client, job)
        _keep_log(client, workdir, job)
        raise
    _keep_log(client, workdir, job)
    return status


def _wait_for_end(client: Any, job: str) -> None:
    """Lets a job that is being stopped do what it does then: a training takes a checkpoint."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline and str(client.get_job_status(job).value) in ("PENDING", "RUNNING"):
        time.sleep(POLL_S)


def _keep_log(client: Any, workdir: Storage, job: str) -> None:
    """Job logs live on their node and go with it."""
    with suppress(Exception):
        workdir.put(f"runs/jobs/{job}/log.txt", client.get_job_logs(job).encode())
