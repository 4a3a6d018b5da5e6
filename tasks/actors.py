"""The pool itself: Ray actors that are always given their next work item before they end the last.

Items are given only to actors that have answered once: one for which the cluster has no room, as after a node was lost
for good, holds nothing. An actor that dies (killed, out of memory, its node lost) is replaced and its items are given
out again. The item that it was working on is remembered: one that does this :data:`MAX_DEATHS` times ends the step with
its name, since it would go on for ever; deaths over different items do not add up.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

from infra.errors import CalummaError, StepFailed
from infra.store.manifest import PartManifest
from tasks.context import StepContext

if TYPE_CHECKING:
    from tasks.pool import Committer, Item, Worker

MAX_DEATHS = 3
AT_ONCE = 2
"""Items that an actor has been given and not finished: with the second one it never waits for the driver."""
DEATHS = (RayActorError, OutOfMemoryError, WorkerCrashedError, NodeDiedError)


@dataclass(eq=False)
class _Member:
    """An actor and what it was given, in the order in which it works on it."""

    actor: Any
    ping: Any
    """What it answers first; None once it has."""
    failed_starts: int = 0
    """How many before it, in its place, died before they answered."""
    given: deque[tuple[Any, Item]] = field(default_factory=deque)


def run_on_actors(
    context: StepContext,
    committer: type[Committer],
    worker: Callable[[StepContext], Worker],
    todo: Sequence[Item],
    size: int,
    gpus: float,
    account: Callable[[PartManifest], None],
    note: Callable[[str], None],
) -> None:
    """Makes and commits every item's part on ``size`` actors of the class ``committer``; ``account`` gets its manifest.

    Joins the cluster that the process is in, or starts one here. Raises as :func:`tasks.pool.run_items` says.
    """
    if not ray.is_initialized():
        ray.init(logging_level="warning")
    size = min(size, len(todo))
    _check_resources(context, size, gpus)
    pool = _Pool(context, committer, worker, gpus, todo, account)
    try:
        pool.run(size, note)
    finally:
        pool.end()


class _Pool:
    def __init__(
        self,
        context: StepContext,
        committer: type[Committer],
        worker: Callable[[StepContext], Worker],
        gpus: float,
        todo: Sequence[Item],
        account: Callable[[PartManifest], None],
    ) -> None:
        resources = context.recipe.resources
        self._class = ray.remote(
            num_cpus=resources.data_cpus,
            num_gpus=gpus,
            accelerator_type=resources.data_accelerator if gpus > 0 else None,
            max_restarts=0,  # restarting is done here, where an item that kills can be told from a lost node
            max_task_retries=0,
        )(committer)
        self._arguments = ray.put(context), worker
        self._context, self._account = context, account
        self._waiting = deque(todo)
        self._members: list[_Member] = []
        self._deaths: Counter[str] = Counter()

    def run(self, size: int, note: Callable[[str], None]) -> None:
        """Works until nothing is left."""
        self._members = [self._member() for _ in range(size)]
        stall_s = self._context.recipe.resources.stall_s
        self._give()
        while owners := self._awaited():
            since = time.monotonic()
            while not (ready := ray.wait(list(owners), num_returns=1, timeout=stall_s)[0]):
                oldest = ", ".join(member.given[0][1].part for member in self._members if member.given)
                minutes = (time.monotonic() - since) / 60
                pending = sum(member.ping is not None for member in self._members)
                waits = f"; {pending} of {len(self._members)} workers wait for room in the cluster" if pending else ""
                note(f"nothing finished for {minutes:.0f} minutes; being worked on: {oldest[:200] or 'none'}{waits}")
            self._take(owners[ready[0]], ready[0])
            self._give()

    def end(self) -> None:
        """Ends all actors; what they were at is not committed, and made anew next time."""
        for member in self._members:
            ray.kill(member.actor)

    def _member(self, failed_starts: int = 0) -> _Member:
        actor = self._class.remote(*self._arguments)
        return _Member(actor, actor.ping.remote(), failed_starts)

    def _awaited(self) -> dict[Any, _Member]:
        """Whose answer each reference is: finished items, and while any wait for an actor, actors that start."""
        items = {ref: member for member in self._members for ref, _ in member.given}
        starts = {m.ping: m for m in self._members if m.ping is not None} if self._waiting else {}
        return items | starts

    def _give(self) -> None:
        """One item to every idle actor first; second ones only while there is one for everybody."""
        for count in range(AT_ONCE):
            for member in self._members:
                idle = member.ping is None and len(member.given) == count
                if idle and len(self._waiting) > (len(self._members) if count else 0):
                    item = self._waiting.popleft()
                    member.given.append((member.actor.process.remote(item), item))

    def _take(self, member: _Member, ref: Any) -> None:
        """Counts a finished item; where its actor died, puts another in its place."""
        try:
            answer = _result(ref)
        except DEATHS as death:
            self._bury(member, death)
            return
        if ref == member.ping:
            member.ping = None
            return
        member.given = deque(pair for pair in member.given if pair[0] != ref)
        self._account(answer)

    def _bury(self, member: _Member, death: Exception) -> None:
        ray.kill(member.actor)  # it may only be out of reach
        lost: list[Item] = []
        for ref, item in member.given:
            try:
                self._account(_result(ref))  # finished before the end
            except DEATHS:
                lost.append(item)
        failed_starts = 0 if member.ping is None else member.failed_starts + 1
        if failed_starts >= MAX_DEATHS:
            raise StepFailed(
                f"step {self._context.step}: a worker died {MAX_DEATHS} times before it began ({_cause(death)}). Look "
                "whether this package and its libraries can be imported on every node; finished parts are kept."
            ) from death
        self._members[self._members.index(member)] = self._member(failed_starts)
        if not lost:
            return
        self._deaths[lost[0].part] += 1  # the first one was being worked on, those behind it had not begun
        if self._deaths[lost[0].part] >= MAX_DEATHS:
            raise StepFailed(
                f"step {self._context.step}: work item {lost[0].part} ({getattr(lost[0], 'locator', '')}) killed its "
                f"worker {MAX_DEATHS} times ({_cause(death)}). Give workers more memory (fewer resources.data_workers "
                "a machine, a smaller scan.item_samples), or take the file out of its source; finished parts are kept."
            ) from death
        self._waiting.extendleft(reversed(lost))


def _result(ref: Any) -> Any:
    """A part's manifest, or None of a ping."""
    try:
        return ray.get(ref)
    except CalummaError as e:  # Ray's text of it is the worker's whole stack
        raise getattr(e, "cause", e) from None


def _cause(death: Exception) -> str:
    lines = [line.strip() for line in str(death).splitlines() if line.strip()]
    return next((line for line in lines if "died because" in line or "dead because" in line), lines[0])[:300]


def _check_resources(context: StepContext, size: int, gpus: float) -> None:
    have, resources = ray.cluster_resources(), context.recipe.resources
    for name, each, key in (("CPU", resources.data_cpus, "data_cpus"), ("GPU", gpus, "data_gpus")):
        available = have.get(name, 0)
        if size * each > available:
            raise StepFailed(
                f"step {context.step}: {size} workers of {each:g} {name}s need {size * each:g} {name}s and the cluster "
                f"has {available:g}. Lower resources.data_workers or resources.{key}."
            )
    wanted = resources.data_accelerator
    if gpus > 0 and wanted is not None and f"accelerator_type:{wanted}" not in have:
        known = sorted(name.partition(":")[2] for name in have if name.startswith("accelerator_type:"))
        raise StepFailed(
            f"step {context.step}: resources.data_accelerator is {wanted}, and no node of the cluster has one; "
            f"it has {', '.join(known) or 'no accelerator'}."
        )
