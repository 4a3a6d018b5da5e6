"""The loader's state: the few numbers from which a run goes on exactly where it was, and when it must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from infra.errors import StoreError
from infra.store.plan import PackedStore, Plan
from model.data.steps import BatchSizes


class LoaderState(BaseModel):
    """Plain JSON by ``model_dump``. Ranks, workers, micro-batches and paths have no part in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: str
    """Fingerprint of the mixture."""
    run: str
    consumed: int = Field(ge=0)
    """Positions behind us; the next step begins here."""
    skipped: tuple[tuple[int, int], ...] = ()
    """Intervals of positions (start, stop) that are passed over."""
    batch: tuple[tuple[int, int], ...]
    """(first position, batch) of every size of the global batch so far and to come."""
    shape: dict[str, Any] = {}
    """What else the order follows from, so that a refusal can say what differs."""

    @field_validator("skipped")
    @classmethod
    def _forward(cls, skipped: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        for start, stop in skipped:
            if not 0 <= start < stop:
                raise ValueError(f"({start}, {stop}) is no interval; expected 0 <= start < stop")
        return skipped

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> LoaderState:
        """A saved state; StoreError where it is none."""
        try:
            return cls.model_validate(saved)
        except ValidationError as e:
            fault = e.errors()[0]
            what = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, found {fault['input']!r}"
            raise StoreError(
                f"this is not the state of a loader of this Calumma ({what}). "
                "Take the state that a checkpoint holds, or start this training anew from step 0."
            ) from e

    def require(self, plan: Plan, run: str, stages: list[PackedStore]) -> None:
        """StoreError, with what differs, where the state is of another plan or run, or of other epochs."""
        for key, here in (("run", run), ("plan", plan.fingerprint)):
            there = getattr(self, key)
            if there != here:
                raise StoreError(
                    f"the checkpoint's loader state has {key} {there!r}; the {key} given now is {here!r}"
                    + (f" ({self._differences(plan, stages)})" if key == "plan" else "")
                    + ". Go on with the recipe and sources it was made with, or start this training anew from step 0."
                )
        if self.shape and self.shape != shape_of(plan, stages):
            raise StoreError(
                f"the checkpoint's loader state is of another {run} run of this plan "
                f"({self._differences(plan, stages)}). Go on with the epochs it was made with, or start this training "
                "anew from step 0."
            )
        total = sum(stage.sequences for stage in stages)
        if self.consumed > total:
            raise StoreError(f"the loader state is at position {self.consumed}; this run has {total} sequences")

    def batch_sizes(self, given: BatchSizes, accept: bool) -> BatchSizes:
        """The batch sizes to go on with: those of the state, which must be the given ones from here on.

        With ``accept`` the given ones replace them from here on; what is behind stays as it was.
        """
        saved = BatchSizes(self.batch)
        if saved.since(self.consumed) == given.since(self.consumed):
            return saved
        if not accept:
            raise StoreError(
                f"from position {self.consumed} on the checkpoint's batch is {_words(saved, self.consumed)}; given now "
                f"is {_words(given, self.consumed)}. Go on with the batch it was made with, or accept the change: "
                "load_state_dict(state, accept_batch=True)."
            )
        return saved.then(self.consumed, given)

    def _differences(self, plan: Plan, stages: list[PackedStore]) -> str:
        here = shape_of(plan, stages)
        found = [
            f"{key} {self.shape[key]!r} there, {here.get(key)!r} here"
            for key in self.shape
            if self.shape[key] != here.get(key)
        ]
        found += [
            f"no {key} there, {value!r} here" for key, value in here.items() if self.shape and key not in self.shape
        ]
        return "; ".join(found) or "of the same shape, made from other documents"


def shape_of(plan: Plan, stages: list[PackedStore]) -> dict[str, Any]:
    """What the order follows from besides the documents: plain JSON."""
    return {"seed": plan.seed, "sequence_length": plan.sequence_length} | {
        f"sequences of {stage.name}": stage.sequences for stage in stages
    }


def _words(sizes: BatchSizes, position: int) -> str:
    (_, batch), *later = sizes.since(position)
    return ", ".join([str(batch), *(f"{size} from position {start} on" for start, size in later)])
