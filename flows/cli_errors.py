"""How commands end: what a user caused as a message, a fault of ours with the place of its trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def plain_errors(workdir: Path | str | None = None) -> Iterator[None]:
    """Errors as messages: what a user caused in full, a fault of ours with the place of its trace."""
    from infra.errors import CalummaError

    try:
        yield
    except CalummaError as e:
        typer.secho(f"error: {e}", fg="red", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.secho("\nStopped. What is committed is kept: the same command goes on from there.", fg="yellow", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        os._exit(0)
    except (typer.Exit, SystemExit):
        raise
    except Exception as e:
        typer.secho(f"error: {type(e).__name__}: {e}\n{_keep_trace(workdir)}", fg="red", err=True)
        raise typer.Exit(1) from None


def _keep_trace(workdir: Path | str | None) -> str:
    import tempfile
    import traceback

    from infra.home import local_side

    root = None if workdir is None else local_side(str(workdir))
    folder = root / "runs" if root is not None and root.is_dir() else Path(tempfile.gettempdir())
    path = folder / "calumma-error.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(" ".join(sys.argv) + "\n\n" + traceback.format_exc(), "utf-8", "backslashreplace")
    except OSError:
        return traceback.format_exc()
    return f"This is not an error Calumma foresaw; the whole trace is in {path}"
