"""The pipeline, from raw files to the report: the table of contents.

Each step is one Prefect task run that stands for one Ray job. Only manifests cross Prefect; data goes from storage to
Ray and back. A step whose manifest exists is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import artifacts
from flows.display import Display
from flows.submit import Cluster, run_job
from infra.errors import StepFailed
from infra.home import local_side, whole_name
from infra.lock import locked
from infra.prefect_forked import let_children_end
from infra.storage import Storage
from infra.store.commit import load_step, retry_of
from infra.store.manifest import StepManifest
from infra.store.plan import load_plan
from tasks.fingerprint import fingerprint_of, fingerprints, folder_of, ingredients
from tasks.mix.show import show_plan
from tasks.recipe import Recipe, load_recipe
from tasks.status import remember
from tasks.steps import BY_NAME, STORES, chosen_steps
from tasks.train.weights import require_trainable


def require_inputs(steps: Sequence[str], prints: dict[str, str], workdir: Storage) -> None:
    """StepFailed unless every input of ``steps`` that is not among them is finished."""
    for step in steps:
        for name in BY_NAME[step].inputs:
            if name not in steps and load_step(workdir.sub(folder_of(name, prints[name]))) is None:
                raise StepFailed(
                    f"step {step} reads what {name} makes, and {name} is not finished for this recipe. "
                    "Run without --only and --from; finished steps are not run again."
                )


let_children_end()


@task(name="step", task_run_name="{step}", cache_policy=NO_CACHE, persist_result=False)
def run_step(
    step: str, fingerprint: str, cluster: Cluster, reports: list[Callable[[dict[str, Any]], None]], number: int = 0
) -> None:
    """One step, or what retry ``number`` adds to it: its Ray job, followed to its manifest, then shown in the UI."""
    bar = artifacts.ProgressArtifact(step, Storage(cluster.workdir))

    def report(state: dict[str, Any]) -> None:
        with suppress(Exception):  # a hiccup of the Prefect API must not cost the job
            bar.update(state)
        for listener in reports:
            listener(state)

    manifest = run_job(cluster, step, fingerprint, report, number)
    with suppress(Exception):  # the step is committed, whether it can be shown or not
        artifacts.publish(step, manifest, Storage(cluster.workdir).sub(folder_of(step, fingerprint)))


@flow(name="calumma", flow_run_name="{workdir}", validate_parameters=True)
def pipeline(
    recipe: Recipe | str,
    workdir: str,
    first: str | None = None,
    only: str | None = None,
    last: str | None = None,
    settings: list[str] | None = None,
) -> dict[str, str]:
    """Runs a recipe's steps that are not done yet; their fingerprints.

    ``recipe`` is a recipe in full, or the name or path of one with ``settings`` such as ``pretrain.batch=16``;
    ``workdir`` a folder or ``s3://BUCKET/PREFIX``.
    """
    if isinstance(recipe, str):
        recipe = load_recipe(recipe, settings or [])
    workdir = whole_name(workdir)
    steps = chosen_steps(first, only, last)
    content = ingredients(recipe, Storage(workdir))
    prints = {step: fingerprint_of(found) for step, found in content.items()}
    require_inputs(steps, prints, Storage(workdir))
    if "image-tokenizer" in steps and recipe.image_tokenizer_import.file is None:
        require_trainable(recipe)
    with locked(local_side(workdir)):
        remember(recipe, Storage(workdir), content)
        _run_steps(recipe, workdir, steps, prints)
    return {step: prints[step] for step in steps}


def _run_steps(recipe: Recipe, workdir: str, steps: Sequence[str], prints: dict[str, str]) -> None:
    store, display, cluster = Storage(workdir), Display(steps), Cluster(recipe, workdir)
    cluster.close()  # a killed run's jobs must not finish steps while we look at them
    try:
        for step in steps:
            folder = store.sub(folder_of(step, prints[step]))
            done: StepManifest | None = load_step(folder)
            known = done is not None
            if done is None:
                display.start(step)
                run_step(step, prints[step], cluster, [display.update])
                done = load_step(folder)
                if step == STORES[-1] and done is not None and any(map(retry_of, done.parts)):
                    # What retries had added is in this store again, and the mixture's address speaks of it.
                    prints.update(fingerprints(recipe, store))
            if done is None:
                raise StepFailed(f"step {step} ended without its manifest in {folder.root}")
            display.finish(step, done, known=known)
            if step == "mix" and not known:
                display.show(show_plan(load_plan(folder)))
    finally:
        display.stop()
        cluster.close()
