"""What a step's work is given: the recipe, its own folder, its inputs' manifests, and where to report progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import commit_step, load_step
from infra.store.manifest import FileEntry, Rows, StepManifest
from tasks.fingerprint import fingerprints, folder_of
from tasks.progress import Progress
from tasks.recipe import Recipe
from tasks.steps import BY_NAME


class StepContext:
    """One step of one run. Pickles small, so that Ray actors can be given it."""

    def __init__(self, recipe: Recipe, workdir: str, step: str, job: str = "local") -> None:
        self.recipe, self.root, self.step, self.job = recipe, workdir, step, job

    @cached_property
    def workdir(self) -> Storage:
        return Storage(self.root)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        return fingerprints(self.recipe)

    @cached_property
    def progress(self) -> Progress:
        return Progress(self.workdir, self.job)

    @property
    def fingerprint(self) -> str:
        return self.fingerprints[self.step]

    def store(self, step: str | None = None) -> Storage:
        """The folder of a step's output; of this step where none is named."""
        name = step or self.step
        return self.workdir.sub(folder_of(name, self.fingerprints[name]))

    def manifest(self, step: str) -> StepManifest:
        """The manifest of a finished step."""
        found = load_step(self.store(step))
        if found is None:
            raise StoreError(f"{self.store(step).root}: step {step} is not finished. Run it first: --only {step}.")
        return found

    def finish(
        self,
        *,
        parts: Sequence[str] = (),
        files: Sequence[FileEntry] = (),
        rows: Mapping[str, Rows] | None = None,
        tokens: Mapping[str, int] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> StepManifest:
        """Commits the step: its manifest, written last."""
        manifest = StepManifest(
            step=self.step,
            fingerprint=self.fingerprint,
            inputs={name: self.fingerprints[name] for name in BY_NAME[self.step].inputs},
            files=list(files),
            rows=dict(rows or {}),
            tokens=dict(tokens or {}),
            facts=dict(facts or {}),
        )
        return commit_step(self.store(), manifest, list(parts))

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "root": self.root, "step": self.step, "job": self.job}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
