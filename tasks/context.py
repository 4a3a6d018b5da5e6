"""What a step's work is given: the recipe, its own folder, its inputs' manifests, and where to report progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import commit_step, load_step, retry_of
from infra.store.manifest import FileEntry, Rows, StepManifest
from tasks.fingerprint import fingerprints, folder_of
from tasks.progress import Progress
from tasks.recipe import Recipe
from tasks.steps import BY_NAME


class StepContext:
    """One step of one run. Pickles small, so that Ray actors can be given it."""

    def __init__(
        self,
        recipe: Recipe,
        workdir: str,
        step: str,
        job: str = "local",
        retry: int = 0,
        prints: dict[str, str] | None = None,
    ) -> None:
        """``prints`` are the recipe's fingerprints, where they are known; else they are worked out when needed."""
        self.recipe, self.root, self.step, self.job = recipe, workdir, step, job
        if prints is not None:
            self.fingerprints = prints
        self.retry = retry
        """0: the step itself; k: what the k-th ``calumma retry`` adds to it."""

    @cached_property
    def workdir(self) -> Storage:
        return Storage(self.root)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        return fingerprints(self.recipe, self.workdir)

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
            raise StoreError(
                f"{self.store(step).root}: step {step} is not finished. Run it first: --only {step}. If it was "
                "finished once, its sources or the recipe have changed since: calumma status says what."
            )
        return found

    def parts(self, made: Sequence[str]) -> list[str]:
        """All parts of the step when ``made`` are the ones that this job makes: those of before a retry come first."""
        before = load_step(self.store()) if self.retry else None
        return [*(p for p in (before.parts if before else ()) if retry_of(p) < self.retry), *made]

    def finish(
        self,
        *,
        parts: Sequence[str] = (),
        files: Sequence[FileEntry] = (),
        retried: Mapping[str, dict[str, int]] | None = None,
        rows: Mapping[str, Rows] | None = None,
        tokens: Mapping[str, int] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> StepManifest:
        """Commits the step, or in a retry what it added: its manifest, written last."""
        manifest = StepManifest(
            step=self.step,
            fingerprint=self.fingerprint,
            inputs={name: self.fingerprints[name] for name in BY_NAME[self.step].inputs},
            files=list(files),
            rows=dict(rows or {}),
            tokens=dict(tokens or {}),
            facts=dict(facts or {}),
            retry=self.retry,
            retried=dict(retried or {}),
        )
        return commit_step(self.store(), manifest, list(parts))

    def __getstate__(self) -> dict[str, Any]:
        names = ("recipe", "root", "step", "job", "retry")
        # The fingerprints travel along: workers must not list the sources again, each for itself.
        return {name: getattr(self, name) for name in names} | {"fingerprints": self.fingerprints}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
