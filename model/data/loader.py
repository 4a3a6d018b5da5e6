"""The loader: global batches of packed sequences, the same for any ranks and workers, resumable from a few numbers.

Three lines in a notebook::

    from infra.storage import Storage
    from model.data.loader import SequenceLoader
    batch = next(iter(SequenceLoader(Storage("work/mix/0123456789ab"), "pretrain", batch=8)))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from infra.errors import RecipeError, StoreError
from infra.storage import Storage
from infra.store.block_cache import BlockCache
from infra.store.plan import load_plan
from infra.store.sequences import SequenceReader, sequence_cache
from model.data.batch import IGNORE, Batch, make_batch, read_batch
from model.data.held_out import held_out, held_out_sources
from model.data.order import Order
from model.data.stages import Run, stages_of
from model.data.state import LoaderState, shape_of
from model.data.steps import BatchSizes, Steps
from model.data.work import Share, Work, ahead
from model.vocabulary import Vocabulary

__all__ = ["IGNORE", "Batch", "Place", "SequenceLoader", "held_out", "held_out_sources", "make_batch"]

MEMORY_CACHE = 256 << 20
"""Bytes of fetched blocks kept in memory where the store is far away and no cache is given."""


class Place(NamedTuple):
    """Where a step's sequences are from."""

    run: Run
    stage: str
    folder: str
    """Of the stage's sequences."""
    start: int
    """First position of the run, in training's order."""
    stop: int
    """Position after the last one."""


class SequenceLoader(IterableDataset[Batch]):
    """Iterates over one rank's micro-batches of a run, from a state to the run's end.

    Every global batch is ``batch`` sequences of one stage, filled up with all-padding sequences where the stage ends or
    where ``world * micro_batch`` does not divide it: a step is equally many micro-batches on every rank. Row ``i`` of
    the global batch goes to rank ``i mod world``. What a micro-batch holds is in :func:`model.data.batch.make_batch`;
    Added are ``step`` and ``micro`` () int64, its number in that step, and ``consumed`` () int64, the state's position
    once the micro-batch has been delivered.

    Iterated over as it is, it prepares ``prefetch`` micro-batches ahead on threads, and the state is always that of
    what was delivered. It is also a data set for torch's DataLoader, which then must be told to leave batches alone,
    and the loader what was delivered::

        for batch in DataLoader(loader, batch_size=None, num_workers=4):
            loader.delivered(batch)
    """

    def __init__(
        self,
        mix_store: Storage,
        run: Run,
        batch: int | BatchSizes,
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
        state: Mapping[str, Any] | None = None,
        *,
        epochs: int | None = None,
        verify: bool = True,
        prefetch: int = 2,
        cache: BlockCache | None = None,
        segments: int | None = None,
    ) -> None:
        """Reads the plan and each stage's description; lists nothing and opens no sequences.

        Args:
            mix_store: The mix step's folder: on a local disk it is memory-mapped, elsewhere read block by block.
            run: Which of the plan's runs.
            batch: The global batch in sequences, also by position.
            rank: Of ``world``.
            world: Number of ranks.
            micro_batch: Sequences of one micro-batch; None: the rank's share of the largest batch.
            state: Where to go on, as :meth:`state_dict` gave it.
            epochs: Of fine-tuning; None: those that were packed. Beyond them, epoch e goes through packing e mod
                (packed epochs) again, in an order of its own.
            verify: Check what is read against the store's checksums.
            prefetch: Micro-batches prepared ahead; 0: none, each is made when it is asked for.
            cache: Of blocks fetched from afar (:func:`infra.store.sequences.sequence_cache`); None: in memory.
            segments: Room of ``cu_seqlens``, see :func:`model.data.batch.make_batch`.

        Raises:
            StoreError: plan, store or state do not fit together.
            RecipeError: a number is out of its range.
        """
        self.plan = load_plan(mix_store)
        self.run, self.rank, self.world, self.prefetch, self._segments = run, rank, world, prefetch, segments
        self.vocabulary = Vocabulary.model_validate(self.plan.vocabulary)
        self._root = mix_store.root
        self._folders = stages_of(self.plan, run, epochs, mix_store)
        if cache is None and not mix_store.local:
            cache = sequence_cache(None, MEMORY_CACHE, self.plan.sequence_length)
        readers = {f.folder: SequenceReader(mix_store, f.folder, verify=verify, cache=cache) for f in self._folders}
        self._readers = [readers[folder.folder] for folder in self._folders]
        for folder, reader in zip(self._folders, self._readers, strict=True):
            if len(reader) != folder.sequences or reader.info.length != self.plan.sequence_length:
                raise StoreError(
                    f"{mix_store.root}/{folder.folder}: {len(reader)} sequences of {reader.info.length}; the plan says "
                    f"{folder.sequences} of {self.plan.sequence_length}. Delete the step's folder and run `mix` again."
                )
        if not 0 <= rank < world or prefetch < 0 or (micro_batch is not None and micro_batch < 1):
            raise RecipeError(
                f"rank {rank} of {world}, micro_batch {micro_batch}, prefetch {prefetch}: expected 0 <= rank < world, "
                "micro_batch >= 1, prefetch >= 0"
            )
        self.order = Order([(folder.name, folder.slices) for folder in self._folders], self.plan.seed)
        self.batch = BatchSizes.of(batch)
        rows = -(-self.batch.largest // world)
        self.micro_batch = min(micro_batch or rows, rows)
        self._share = Share(rank, world, self.micro_batch)
        self.consumed = 0
        """Positions consumed by the steps whose micro-batches have all been delivered."""
        self.skipped: list[tuple[int, int]] = []
        """Intervals of positions (start, stop) that are passed over."""
        self._steps = Steps(self.order, self.batch)
        self._micro = 0
        """Micro-batches of the next step that were delivered."""
        self._last: tuple[int, int] | None = None
        """Step and number of the micro-batch that was delivered last."""
        if state is not None:
            self.load_state_dict(state)

    @property
    def sequence_length(self) -> int:
        return self.plan.sequence_length

    @property
    def steps(self) -> int:
        """Steps of the whole run, skipped intervals left out."""
        return len(self._steps)

    @property
    def step(self) -> int:
        """Steps whose micro-batches have all been delivered."""
        return self._steps.at(self.consumed)

    @property
    def stage(self) -> str:
        """Name of the stage that the last step came from; before the first step, of the first stage."""
        return self._folders[self.order.stage_of(max(0, self.consumed - 1))].name

    @property
    def place(self) -> Place:
        """Where the last step's sequences are from. RuntimeError before the first step."""
        if not self.step:
            raise RuntimeError("no step's micro-batches have all been delivered yet")
        step = self._steps[self.step - 1]
        stage, start = self._folders[step.stage], int(self._steps.positions([step.start])[0])
        return Place(self.run, stage.name, f"{self._root}/{stage.folder}", start, self._steps.consumed(step))

    @property
    def accumulation(self) -> int:
        """Micro-batches of the next step, on every rank: as many for a short step as for a whole one."""
        if not self.steps:  # everything is skipped
            return self.max_accumulation
        return self._share.accumulation(self._steps[min(self.step, len(self._steps) - 1)].batch)

    @property
    def max_accumulation(self) -> int:
        """Micro-batches of the largest step."""
        return self._share.accumulation(self.batch.largest)

    # -- iterating

    def __iter__(self) -> Iterator[Batch]:
        """Micro-batches from the state on. In a worker of a DataLoader: its share of them."""
        steps, worker = self._steps, get_worker_info()
        work = self._share.work(self.order, steps, self.step)
        if worker is not None:
            yield from map(self._make, islice(work, worker.id, None, worker.num_workers))
            return
        for done, batch in ahead(lambda one: (one, self._make(one)), work, self.prefetch):
            if self._steps is not steps:
                raise RuntimeError("the loader's state was set anew: what is iterated over now must begin anew too")
            # Before the yield: a checkpoint is taken while we wait in it. The position moves with a step's end.
            self._move(done.consumed, done.step, done.micro, done.consumed != self.consumed)
            yield batch

    def delivered(self, batch: Batch) -> None:
        """Moves the state on: this micro-batch, and so all before it, have been handed out.

        The one delivered last may be delivered again, which changes nothing, and a step may begin anew.

        RuntimeError where another one was to come: one was left out, or this one was made before the state was set
        anew.
        """
        consumed, step, micro = (int(batch[name]) for name in ("consumed", "step", "micro"))
        if (step, micro) == self._last:
            return
        live, last = self._steps.live, micro + 1 == self.accumulation
        fits = step == self.step < self.steps and micro in (0, self._micro)
        if not fits or live(consumed) != (self._steps[step].stop if last else live(self.consumed)):
            raise RuntimeError(
                f"micro-batch {micro} of step {step}, which ends at position {consumed}, came where {self._micro} of "
                f"step {self.step} was to come, at position {self.consumed}. One was left out, or it was made before "
                "the loader's state was set anew. Begin anew with a new DataLoader: one with persistent_workers would "
                "begin where it first began."
            )
        self._move(consumed, step, micro, last)

    def _move(self, consumed: int, step: int, micro: int, last: bool) -> None:
        self.consumed, self._micro, self._last = consumed, 0 if last else micro + 1, (step, micro)

    def _make(self, work: Work) -> Batch:
        batch = read_batch(self._readers[work.stage], work.sequences_B, self.vocabulary, self._segments)
        return batch | {name: torch.tensor(getattr(work, name)) for name in ("consumed", "step", "micro")}

    # -- the state

    def skip(self, start: int, stop: int) -> None:
        """Passes over positions ``start`` to ``stop - 1``, say those of a loss spike; from now on part of the state.

        What is already behind stays behind. Whatever is being iterated over must begin anew.
        """
        if not 0 <= start < stop:
            raise RecipeError(f"skip({start}, {stop}): expected 0 <= start < stop")
        if stop <= self.consumed:
            raise RecipeError(
                f"skip({start}, {stop}): the run is at position {self.consumed} already. Load an earlier checkpoint."
            )
        self.skipped = sorted({*self.skipped, (max(start, self.consumed), stop)})
        self._steps = Steps(self.order, self.batch, self.skipped)
        if self._micro:  # a step begins anew
            self._micro, self._last = 0, None

    def pass_over(self, intervals: Iterable[tuple[int, int]]) -> None:
        """Skips those of a recipe, which may have passed by already; RecipeError for one beyond the run's end."""
        for start, stop in intervals:
            if stop > len(self.order):
                raise RecipeError(
                    f"{self.run}.skip: [{start}, {stop}]; the run has {len(self.order):,} positions, so that `end` can "
                    f"be {len(self.order)} at most"
                )
            if stop > self.consumed:
                self.skip(start, stop)

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs, as plain JSON: the plan, the run, the position, skipped intervals, batch sizes."""
        return LoaderState(
            plan=self.plan.fingerprint,
            run=self.run,
            consumed=self.consumed,
            skipped=tuple(self.skipped),
            batch=self.batch.phases,
            shape=shape_of(self.plan, self._folders),
        ).model_dump(mode="json")

    def load_state_dict(self, state: Mapping[str, Any], *, accept_batch: bool = False) -> None:
        """Goes on where the state was taken, with any number of ranks.

        Raises:
            StoreError: it was taken in another plan or run, or with other epochs; the batch from there on is another
                one than this loader's, unless ``accept_batch`` lets this loader's take over at that position.
        """
        saved = LoaderState.of(state)
        saved.require(self.plan, self.run, self._folders)
        batch = saved.batch_sizes(self.batch, accept_batch)
        steps = Steps(self.order, batch, saved.skipped)
        try:
            steps.at(saved.consumed)
        except ValueError:  # not between two steps: a state made by hand. A step ends there all the same
            batch = batch.then(saved.consumed, batch)
            steps = Steps(self.order, batch, saved.skipped)
        self.batch, self._steps = batch, steps
        self.consumed, self.skipped = saved.consumed, list(saved.skipped)
        self._micro, self._last = 0, None
