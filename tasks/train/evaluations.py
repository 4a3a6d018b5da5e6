"""Sheets of reconstructions that are kept of a training of the image tokenizer: which ones, and under which names."""

from __future__ import annotations

from infra.storage import Storage

EVALUATIONS = "evaluations"
SHEETS = 12
"""Sheets that are kept at most."""


def sheet_name(step: int) -> str:
    """Where the sheet of a step lies in the step's folder."""
    return f"{EVALUATIONS}/step-{step:09d}.png"


def sheet_steps(store: Storage) -> list[int]:
    """The steps that there are sheets of, in order."""
    return sorted(int(name.removeprefix("step-").removesuffix(".png")) for name in store.list(EVALUATIONS, ".png"))


def thin(store: Storage, every: int) -> None:
    """Keeps at most :data:`SHEETS` sheets of a long training: the first, others at even distances, and the newest.

    Which ones follows from the newest step alone, so that a training that was resumed leaves the same.
    """
    steps = sheet_steps(store)
    looks, apart = max(steps, default=0) // every, 1
    while (looks - 1) // apart + 2 > SHEETS:
        apart *= 2
    for step in steps[:-1]:
        if step % every or (step // every - 1) % apart:
            store.delete(sheet_name(step))


def forget(store: Storage, done: int) -> None:
    """Removes the sheets of steps that a resumed training takes again."""
    for step in sheet_steps(store):
        if step > done:
            store.delete(sheet_name(step))
