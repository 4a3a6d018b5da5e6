"""A run on this machine: the work folder's lock, Prefect's embedded API over that folder, and the run's last words."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from infra.errors import ResourceError
from infra.ray_local import recorded
from infra.storage import Storage
from infra.store.commit import load_step
from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe, load_recipe
from tasks.steps import chosen_steps

LOCK = "runs/lock"


def run_locally(
    recipe_name: str, settings: Sequence[str], workdir: Path | None, first: str | None, only: str | None
) -> None:
    """What ``calumma run`` does. Nothing is started when there is nothing to do."""
    console = Console(highlight=False, soft_wrap=True)
    recipe = load_recipe(recipe_name, settings)
    root = (workdir or Path("work") / recipe.name).absolute()
    prints = fingerprints(recipe)
    store = Storage(root)
    names = chosen_steps(first, only)
    if all(load_step(store.sub(folder_of(n, prints[n]))) is not None for n in names):
        _remember(recipe, store)
        console.print(f"Nothing to do: {len(names)} of {len(names)} steps are done in {root}")
    else:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ResourceError(f"{root}: the work folder cannot be made ({e.strerror}); choose another") from e
        store.need(256 << 20, "a run")
        with locked(root), _terminated_as_interrupt():
            _prefect_environment(root)
            console.print(f"Recipe [bold]{recipe.name}[/] into {root} (stop with Ctrl-C; run again to go on)")
            from flows.pipeline import pipeline

            pipeline(recipe, str(root), first=first, only=only)
    report = root / folder_of("report", prints["report"]) / "report.html"
    if only is None and report.is_file():
        shown = _short(root)
        console.print(
            f"\nReport: [bold]{_short(report)}[/]\n\nTo try next:\n"
            f'  calumma generate {shown} "Draw: red apple" --modality image\n'
            f"  calumma export {shown} --out {root.name}-transformers\n"
            f"  calumma ui {shown}"
        )


def _remember(recipe: Recipe, store: Storage) -> None:
    """The work folder's recipe is the last one asked for, also when all of its steps were known."""
    text = recipe.to_yaml().encode()
    if store.get_or_none("recipe.yaml") != text:
        store.put("recipe.yaml", text)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """One run a work folder. The lock ends with its process, however that ends."""
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            f.seek(0)
            raise ResourceError(
                f"{root}: another run is active in this folder (process {f.read().strip() or 'unknown'}). "
                "Wait for it, stop it, or choose another folder with --workdir."
            ) from None
        f.truncate(0)
        f.write(f"{os.getpid()}\n")
        f.flush()
        yield


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


def _prefect_environment(root: Path) -> None:
    """Prefect over this folder's own database, unless the user points it at a server. Before Prefect is imported."""
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # The UI keeps the log; the terminal shows the steps and, once, the error.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",  # the default of 20 is too short on a busy machine
    }
    if "PREFECT_API_URL" not in os.environ:
        defaults |= {"PREFECT_HOME": str(root / "runs" / "prefect"), "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true"}
    for key, value in defaults.items():
        os.environ.setdefault(key, value)


def serve_ui(workdir: Path, port: int) -> None:
    """Runs a Prefect server over the folder's runs until it is interrupted."""
    root = workdir.absolute()
    if not (root / "runs").is_dir():
        raise ResourceError(f"{root}: no run was made in this folder; make one: calumma run RECIPE --workdir {root}")
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as e:
            raise ResourceError(f"port {port} is taken ({e.strerror}); choose another with --port") from e
    _prefect_environment(root)
    ray = recorded(root)
    Console(soft_wrap=True).print(
        f"Prefect UI: http://127.0.0.1:{port}\n"
        + (f"Ray dashboard: {ray.address}" if ray else "Ray dashboard: up only while a run is on")
        + "\nStop with Ctrl-C."
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    subprocess.run(command, check=False, env={**os.environ, "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"})
