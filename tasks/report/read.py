"""What the report is made of: manifests, metrics, the plan, evaluation's results and the jobs' records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from PIL import Image

from infra.store.commit import PARTS, load_part
from infra.store.manifest import PartManifest, StepManifest
from infra.store.plan import Plan, load_plan
from tasks.context import StepContext
from tasks.sheets import cut
from tasks.steps import STEPS

METRICS = "metrics.jsonl"
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at a step that ended."""

    step: str
    started: float
    """Seconds since the epoch."""
    seconds: float
    state: str


class Run:
    """A finished run, read lazily. What a step did not write is empty, not an error: the report shows what there is."""

    def __init__(self, context: StepContext) -> None:
        self.context, self.recipe = context, context.recipe

    @cached_property
    def manifests(self) -> dict[str, StepManifest]:
        """Of every step but this one, in order."""
        return {s.name: self.context.manifest(s.name) for s in STEPS if s.name != self.context.step}

    def facts(self, step: str) -> dict[str, Any]:
        return self.manifests[step].facts

    def parts(self, step: str) -> list[PartManifest]:
        store = self.context.store(step)
        return [load_part(store, part) for part in self.manifests[step].parts]

    def metrics(self, step: str) -> list[dict[str, Any]]:
        """The lines of a training's metrics, in step order."""
        data = self.context.store(step).get_or_none(METRICS) or b""
        return [json.loads(line) for line in data.decode().splitlines()]

    def file(self, step: str, name: str) -> bytes | None:
        """A file of a step's folder, or None where the step wrote none."""
        return self.context.store(step).get_or_none(name)

    @cached_property
    def plan(self) -> Plan:
        return load_plan(self.context.store("mix"))

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """Evaluation's measurements, in its order."""
        found: list[dict[str, Any]] = json.loads(self.context.store("evaluate").get("results.json"))
        return found

    def measured(self, kind: str, **wanted: Any) -> dict[str, Any] | None:
        """The first measurement of a kind with these values."""
        for found in self.results:
            if found["kind"] == kind and all(found[k] == v for k, v in wanted.items()):
                return found
        return None

    def tiles(self, found: dict[str, Any]) -> list[list[Image.Image]]:
        """A measurement's pictures, by row."""
        if found["sheet"] is None:
            return []
        return cut(self.context.store("evaluate").get(f"{PARTS}/{found['sheet']}"), found["tile"])

    @cached_property
    def jobs(self) -> list[Job]:
        """The attempts at this run's steps that ended by themselves, in the order in which they started."""
        found = [job for name, m in self.manifests.items() for job in self._attempts(name, m.fingerprint)]
        return sorted(found, key=lambda job: job.started)

    def _attempts(self, step: str, fingerprint: str) -> Iterator[Job]:
        workdir = self.context.workdir
        for attempt in itertools.count(1):
            job = f"runs/jobs/{step}-{fingerprint}-{attempt}"
            if not workdir.exists(f"{job}/submitted"):
                return
            if (data := workdir.get_or_none(f"{job}/record.json")) is not None:
                record = json.loads(data)
                yield Job(step, record["started"], record["seconds"], record["state"])


def in_order(run: Run, by_source: Mapping[str, Value]) -> dict[str, Value]:
    """The same by source, in the recipe's order; other keys follow as they came."""
    order = {s.name: i for i, s in enumerate(run.recipe.sources)}
    return dict(sorted(by_source.items(), key=lambda item: order.get(item[0], len(order))))
