"""``calumma retry``: the quarantined samples whose fault may have passed, through the stores again, and only they."""

from __future__ import annotations

from prefect import flow

from flows.display import Display
from flows.pipeline import run_step
from flows.submit import Cluster
from infra.errors import StepFailed
from infra.home import local_side, whole_name
from infra.lock import locked
from infra.storage import Storage
from infra.store.commit import load_own_manifest
from tasks.context import StepContext
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe
from tasks.retry import RetryPlan, plan_retry


@flow(name="calumma-retry", flow_run_name="{workdir}", validate_parameters=True)
def retry(recipe: Recipe, workdir: str) -> dict[str, int]:
    """Reads again what may have been mended; samples by what became of them, none where there is nothing to try."""
    workdir = whole_name(workdir)
    with locked(local_side(workdir)):
        plan = plan_retry(StepContext(recipe, workdir, "scan"))
        return {} if plan is None else _run(recipe, workdir, plan)


def _run(recipe: Recipe, workdir: str, plan: RetryPlan) -> dict[str, int]:
    store, display, cluster = Storage(workdir), Display(plan.steps), Cluster(recipe, workdir)
    prints = fingerprints(recipe, store)
    rescued = 0
    cluster.close()  # a killed run's jobs must not go on beside ours
    try:
        for step in plan.steps:
            folder = store.sub(folder_of(step, prints[step]))
            done = load_own_manifest(folder, plan.number)
            known = done is not None
            if done is None:
                display.start(step)
                run_step(step, prints[step], cluster, [display.update], plan.number)
                done = load_own_manifest(folder, plan.number)
            if done is None:
                raise StepFailed(f"retry {plan.number} of step {step} ended without its manifest in {folder.root}")
            rescued = sum(rows.out for rows in done.rows.values())
            display.finish(step, done, known=known)
    finally:
        display.stop()
        cluster.close()
    return {"tried": sum(plan.classes.values()), "rescued": rescued}
