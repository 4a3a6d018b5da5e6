"""A run on this machine: the work folder's lock, a Prefect server over that folder, and the run's last words."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from rich.console import Console

from infra.errors import ResourceError
from infra.home import local_side, whole_name
from infra.lock import locked
from infra.prefect_local import RECORD as PREFECT_RECORD
from infra.prefect_local import (
    end_prefect,
    prefect_environment,
    recorded_prefect,
    server_command,
    start_prefect,
    wait_for_prefect,
)
from infra.processes import is_free
from infra.ray_local import RECORD as RAY_RECORD
from infra.ray_local import end_ray, recorded_ray
from infra.storage import Storage
from infra.store.commit import load_step
from tasks.fingerprint import fingerprint_of, folder_of, ingredients
from tasks.recipe import load_recipe
from tasks.status import last_recipe, remember
from tasks.steps import chosen_steps


def run_locally(
    recipe_name: str,
    settings: Sequence[str],
    workdir: str | None,
    first: str | None = None,
    only: str | None = None,
    last: str | None = None,
) -> None:
    """What ``calumma run`` does. Nothing is started when there is nothing to do."""
    console = Console(highlight=False, soft_wrap=True)
    recipe = load_recipe(recipe_name, settings)
    name = whole_name(workdir or f"work/{recipe.name}")
    root, store = local_side(name), Storage(name)
    names = chosen_steps(first, only, last)
    content = ingredients(recipe, store)
    prints = {step: fingerprint_of(found) for step, found in content.items()}
    if all(load_step(store.sub(folder_of(n, prints[n]))) is not None for n in names):
        remember(recipe, store, content)
        _end_leftovers(root)
        console.print(f"Nothing to do: {len(names)} of {len(names)} steps are done in {name}")
    else:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ResourceError(f"{root}: the work folder cannot be made ({e.strerror}); choose another") from e
        store.need(256 << 20, "a run")
        console.print(f"Recipe [bold]{recipe.name}[/] into {name} (stop with Ctrl-C; run again to go on)")
        with locked(root), _terminated_as_interrupt(), prefect_api(root) as ui:
            if ui is not None:
                console.print(f"Prefect UI while it runs: {ui}")
            from flows.pipeline import pipeline

            pipeline(recipe, name, first=first, only=only, last=last)
    report = f"{folder_of('report', prints['report'])}/report.html"
    if only is last is None and store.exists(report):
        shown, command = _short(name), _command()
        console.print(
            f"\nReport: [bold]{_short(store.url(report))}[/]\n\nTo try next:\n"
            f'  {command} generate {shown} "{recipe.evaluation.request.format(name="red apple")}" --modality image\n'
            f"  {command} export {shown} --out {name.rpartition('/')[2]}-transformers\n"
            f"  {command} ui {shown}"
        )


def retry_locally(workdir: str) -> None:
    """What ``calumma retry`` does. Nothing is started when nothing in quarantine may have been mended."""
    from tasks.context import StepContext
    from tasks.retry import plan_retry

    console = Console(highlight=False, soft_wrap=True)
    name = whole_name(workdir)
    root, recipe = local_side(name), last_recipe(name)
    with locked(root):
        plan = plan_retry(StepContext(recipe, name, "scan"))
        if plan is None:
            console.print(f"Nothing to retry in {name}: no quarantined sample's fault is one that may pass by itself.")
            return
        classes = ", ".join(f"{n:,} {error}" for error, n in plan.classes.items())
        console.print(f"{'Going on with' if plan.begun else 'Starting'} retry {plan.number}: {classes}")
        with _terminated_as_interrupt(), prefect_api(root):
            from flows.retry import retry

            found = retry(recipe, name)
        console.print(f"{found['rescued']:,} of {found['tried']:,} samples are in the stores now")
        if found["rescued"]:
            console.print(f"To mix and train with them: {_command()} run RECIPE --workdir {name}")


def _end_leftovers(root: Path) -> None:
    """Ends what a killed run left running, where nothing else is to be done; another run's helpers are let alone."""
    if any((root / name).exists() for name in (RAY_RECORD, PREFECT_RECORD)):
        with suppress(ResourceError), locked(root):
            end_ray(root)
            end_prefect(root)


def _command() -> str:
    """How the user calls this program: by name where the shell finds it, else by path."""
    return "calumma" if shutil.which("calumma") else _short(str(Path(sys.executable).absolute().parent / "calumma"))


def _short(name: str) -> str:
    """A path as seen from here, where it lies below; an address as it is."""
    return str(Path(name).relative_to(Path.cwd())) if Path(name).is_relative_to(Path.cwd()) else name


@contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run like Ctrl-C does: the job is stopped and the local Ray ended."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def prefect_api(root: Path) -> Iterator[str | None]:
    """A Prefect API for the run: the user's, by ``PREFECT_API_URL``, or this folder's own. Before Prefect is imported.

    Yields the address of the UI of the folder's own server.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # The UI keeps the log; the terminal shows the steps and, once, the error.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if "PREFECT_API_URL" in os.environ:
        yield None
        return
    server = start_prefect(root)
    try:
        os.environ |= prefect_environment(root) | {"PREFECT_API_URL": f"{server.address}/api"}
        import flows.pipeline  # noqa: F401 - takes seconds, and so does the server's start

        wait_for_prefect(root, server)
        yield server.address
    finally:
        with suppress(Exception):
            _deliver()
        os.environ.pop("PREFECT_API_URL", None)
        server.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(timeout=5)
        end_prefect(root)


def _deliver() -> None:
    """Lets Prefect's background threads deliver the last events and log lines while there is a server to take them."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for service in (EventsWorker, APILogWorker):
        service.drain_all(timeout=10, at_exit=True)


def serve_ui(workdir: str, port: int) -> None:
    """Serves the Prefect UI over the folder's runs until it is interrupted; says where it is if a run serves it now.

    Of a folder on S3 these are the runs that were made on this machine.
    """
    name = whole_name(workdir)
    root = local_side(name)
    if not (root / "runs").is_dir():
        raise ResourceError(f"{name}: no run was made in this folder; make one: calumma run RECIPE --workdir {name}")
    console, ray, running = Console(soft_wrap=True), recorded_ray(root), recorded_prefect(root)
    dashboard = f"Ray dashboard: {ray.address}" if ray else "Ray dashboard: up only while a run is on"
    if running is not None:
        console.print(f"A run is on, and serves the Prefect UI: {running}\n{dashboard}")
        return
    if not is_free(port):
        raise ResourceError(f"port {port} is taken; choose another with --port")
    console.print(f"Prefect UI: http://127.0.0.1:{port}\n{dashboard}\nStop with Ctrl-C.")
    env = {**os.environ, **prefect_environment(root)}
    with suppress(KeyboardInterrupt):
        subprocess.run(server_command(port), check=False, env=env)
