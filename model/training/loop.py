"""The training loop of pre-training and fine-tuning: one loop, driving a DeepSpeed engine on every rank.

It runs inside an initialised ``torch.distributed`` group and knows nothing of who started it: progress and stop
requests are callbacks. What a step is stands in ``step.py``; here is what is around it: the learning rate, rollbacks,
checkpoints, the figures written down.

Same world size, same inputs: parameters after step N are the same bits whether or not the run was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from infra.deepspeed_json import deepspeed_json
from infra.errors import CalummaError
from infra.settings import ResourcesConfig
from infra.storage import Storage
from model.data.loader import Batch, SequenceLoader
from model.training.checkpoint import Checkpoint, Checkpoints
from model.training.clock import StepClock
from model.training.config import FinetuneConfig, PretrainConfig
from model.training.engine import start_engine
from model.training.evaluate import held_out_losses
from model.training.guard import Finding, Guard, Rollback, RollbackError
from model.training.module import TrainingModule, figures_of
from model.training.monitors import MetricsLog
from model.training.optimizer import agree_on_bf16, make_optimizer
from model.training.schedule import factor, require_decay
from model.training.start import place_weights
from model.training.step import Stepper, Taken
from model.training.watch.config import WatchConfig
from model.training.watch.drawings import Drawings
from model.training.watch.look import Watch
from model.training.watch.sinks import require_packages
from model.training.watch.throughput import Throughput
from model.transformer.model import Transformer

KEYS = {"loss": "loss_spike", "gradients": "spike", "output_norm": "output_growth"}
"""The key of a step's line under which a rule that fired writes its ratio."""


@dataclass
class Training:
    """One training: what to train, on what, how, and where its output goes."""

    model: Transformer
    loader: SequenceLoader
    config: PretrainConfig | FinetuneConfig
    resources: ResourcesConfig
    store: Storage
    """The step's folder."""
    mix: Storage
    """The mixture's folder, for held-out losses."""
    seed: int
    weights: Iterable[tuple[str, Tensor]] | None = None
    """What to start from where ``model`` is on the meta device: names and tensors in the order of its parameters, which
    rank 0 asks for one after the other. None: ``model`` has its weights, whole on each rank."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    origin: tuple[Storage, int] | None = None
    """Another training's folder, and the step of its checkpoint to begin with; its batch may be another one."""
    drawings: Drawings | None = None
    """Draws pictures now and then; None: none."""
    report: Callable[[int, int, str], None] = lambda step, total, note: None
    """Called on rank 0 after every step: steps done, steps in all, a short note."""
    observe: Callable[[dict[str, Any]], None] = lambda line: None
    """Called on rank 0 with every line of the metrics, before ``report``."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked on rank 0 every step; once true, the training checkpoints and returns."""


@dataclass
class Outcome:
    """How a training ended."""

    finished: bool
    """False: it was asked to stop, and goes on from its checkpoint when run again."""
    step: int
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """float32 weights on rank 0, each read from the last checkpoint when it is asked for; empty elsewhere and unless
    finished."""
    facts: dict[str, Any] = field(default_factory=dict)


def train(job: Training) -> Outcome:
    """Trains to the loader's end, from the last checkpoint where there is one. Called by all ranks together.

    Raises:
        NonFiniteError: a loss or gradient is not finite; raised on all ranks before the optimizer moves.
        RollbackError: a rule asks for a rollback, and as many as allowed were made, or no good checkpoint is left.
        StoreError: the checkpoint belongs to another plan, batch or model, or could not be written.
        RecipeError: ``resources.deepspeed`` has a key that DeepSpeed would ignore, ``watch`` names a service whose
            package is missing, ``skip`` goes beyond the run's end, or no step comes after the warm-up.
    """
    try:
        return _Run(job).train()
    finally:
        job.model.see = None  # what looked at the residual stream


class _Run:
    """The state of one call of :func:`train`."""

    def __init__(self, job: Training) -> None:
        self.job, self.config, self.loader = job, job.config, job.loader
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        require_packages(job.watch)
        self.bf16 = agree_on_bf16(job.resources)
        job.model.run_with(
            job.resources.attention_backend, job.resources.activation_checkpointing, job.resources.compile
        )
        settings = deepspeed_json(
            job.resources,
            bf16=self.bf16,
            world=self.world,
            micro_batch=self.loader.micro_batch,
            accumulation=self.loader.max_accumulation,
            clip=self.config.optimizer.clip,
        )
        if job.weights is not None:
            place_weights(job.model, job.weights, settings)
        self.engine = start_engine(
            TrainingModule(job.model, self.config.z_loss, self.config.image_weight, self.config.attention),
            make_optimizer(job.model, self.config.optimizer),
            settings,
        )
        self.device = self.engine.device
        self.guard = Guard(self.config.guard)
        self.stepper = Stepper(
            *(self.engine, self.guard),
            seed=job.seed,
            dropout=job.model.config.dropout > 0,
            image_weight=self.config.image_weight,
        )
        self.checkpoints = Checkpoints(
            *(job.store, self.engine, job.model),
            {"zero_stage": job.resources.zero_stage, "precision": "bf16" if self.bf16 else "fp32"},
            describe={
                **job.model.config.model_dump(mode="json", exclude={"dropout"}),
                # None and what it stands for are one model.
                **{"kv_heads": job.model.config.n_kv_heads, "ffn": job.model.config.ffn_dim},
                "vocabulary_size": job.model.vocabulary_size,
            },
            keep=self.config.keep_checkpoints,
            keep_every=self.config.keep_every,
        )
        self.step, self.last = 0, dict[str, Any]()
        self.total_tokens = 0
        if (found := self.checkpoints.load_latest()) is not None:
            self._restore(found)
        elif job.origin is not None:
            self._restore(self.checkpoints.load_from(*job.origin), accept_batch=True)
            self._begin()
            self.checkpoints.save(self.step, self._state())  # from here on its own, with the new batch
        else:
            self._begin()
            if self.config.guard.rolls_back:
                self.checkpoints.save(0, self._state())  # a rollback may go back to the beginning
        self.total = self.loader.steps
        self.watch = Watch(self.engine, job.model, job.watch)
        self.throughput = Throughput.of(
            *(job.model.config, job.model.vocabulary_size, self.loader.sequence_length),
            *(self.device, torch.bfloat16 if self.bf16 else torch.float32),
        )
        self.log = MetricsLog(job.store, self.step, job.watch) if self.rank == 0 else None
        self.started, self.tokens, self.clock = time.monotonic(), 0, StepClock()

    def train(self) -> Outcome:
        self.engine.train()
        stopped = False
        try:
            while self.step < self.total and not stopped:
                stopped = self._until_rollback()
            self.checkpoints.wait()
        except CalummaError:  # raised on all ranks; what was saved before is good
            self.checkpoints.wait()
            self.checkpoints.close()
            raise
        finally:
            if self.log is not None:
                self.log.close()
        if self.step < self.total:
            self.checkpoints.close()
            return Outcome(False, self.step)
        seconds = time.monotonic() - self.started
        facts = {
            "steps": self.step,
            "parameters": self.job.model.config.parameters(self.job.model.vocabulary_size),
            "tokens": self.total_tokens,
            "tokens_per_s": round(self.tokens / seconds, 1) if self.tokens else None,
            "peak_flops": self.throughput.peak,
            "peak_from": self.throughput.source,
            "world": self.world,
            "checkpoints_s": round(self.checkpoints.waited, 2),
            "precision": "bf16" if self.bf16 else "fp32",
            "final": self.last,
        }
        weights = self.checkpoints.weights()
        self.checkpoints.close()
        return Outcome(True, self.step, weights, facts)

    def _until_rollback(self) -> bool:
        """Steps up to the end, a stop request (True) or a rollback, after which the loader begins anew."""
        rollbacks = len(self.guard.rollbacks)
        batches = iter(self.loader)
        self.clock.restart()
        while self.step < self.total:
            with self.clock.part("data_s"):
                micros = [self._moved(next(batches)) for _ in range(self.loader.accumulation)]
            stopped = self._step(micros)
            if len(self.guard.rollbacks) > rollbacks:
                return stopped
            if stopped or self.step % self.config.checkpoint_every == 0 or self.step == self.total:
                with self.clock.part("save_s", aside=True):
                    self._save()
            if stopped:
                return True
        return False

    def _moved(self, micro: Batch) -> Batch:
        """On the device, but for what attention needs as a number: reading that from a GPU would wait for it."""
        return {k: v if k == "max_seqlen" else v.to(self.device) for k, v in micro.items()}

    def _step(self, micros: list[Batch]) -> bool:
        """One optimizer step; whether the training was asked to stop."""
        rate = self.config.optimizer.learning_rate * factor(self.config.schedule, self.step, self.total)
        taken = self.stepper.take(micros, self.step, rate, self.loader.place, self.job.should_stop)
        if self.rank == 0:
            for finding in taken.findings:
                print(f"{finding}; {finding.action}", flush=True)
        if taken.rollback is not None:
            self._roll_back(taken.rollback)
        else:
            self.step += 1
            self.total_tokens += int(figures_of(taken.sums)["tokens"])
            self._write(taken, micros[0], rate)
        return taken.stop

    def _roll_back(self, finding: Finding) -> None:
        """Goes on from a checkpoint of before what was found, and passes over the sequences from there to here.

        A kill on the way, or before the next checkpoint, changes nothing: the newer checkpoints are removed first, so
        that a training gone on from the older one finds the same again; then that one's manifest is replaced by one
        that knows of the rollback.
        """
        most, here = self.guard.last_good(finding), self.loader.consumed
        found = self.checkpoints.load_latest(most)
        if found is None:
            raise RollbackError(
                f"{finding}. No checkpoint was kept from step {most} or before, to go back to. The optimizer has not "
                "moved. Raise keep_checkpoints, lower checkpoint_every or guard.rollback_steps, and start anew."
            )
        past = self.guard.rollbacks
        self._restore(found)
        rollback = Rollback(finding.rule, finding.ratio, finding.step, found.step, self.loader.consumed, here)
        self.guard.rollbacks = [*past, rollback]
        self.loader.skip(rollback.start, rollback.stop)
        self.total = self.loader.steps
        self.checkpoints.replace(found, self._state())
        if self.log is not None:
            self.log.close()
            self.log = MetricsLog(self.job.store, self.step, self.job.watch)
            print(
                f"step {finding.step}: back to step {found.step}; positions {rollback.start} to {rollback.stop - 1} "
                f"are passed over (rollback {len(self.guard.rollbacks)} of at most {self.config.guard.max_rollbacks})",
                flush=True,
            )

    def _begin(self) -> None:
        """What is looked at and set once, where a training begins; afterwards checkpoints hold it."""
        self.loader.pass_over(self.config.skip)
        require_decay(self.config.schedule, self.loader.steps)
        if self.rank == 0:
            for line in self.guard.silent(self.loader.steps):
                print(line, flush=True)

    def _restore(self, found: Checkpoint, accept_batch: bool = False) -> None:
        """Everything but the engine's state, which is loaded already."""
        self.step = found.step
        self.loader.load_state_dict(found.state["loader"], accept_batch=accept_batch)
        self.guard.load_state_dict(found.state["guard"])
        self.last = dict(found.state["last"])
        self.total_tokens = int(found.state.get("tokens", 0))  # the oldest ones do not count them

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the engine's state, as plain JSON."""
        return {"loader": self.loader.state_dict(), "guard": self.guard.state_dict(), "last": self.last} | {
            "tokens": self.total_tokens
        }

    def _write(self, taken: Taken, micro: Batch, rate: float) -> None:
        """The step's line; every rank takes part in the held-out losses, rank 0 writes."""
        seconds, parts = self.clock.lap()
        with self.clock.part("look_s", aside=True):
            line, sheet = self._line(taken, micro, rate)
        if self.log is None:
            return
        line |= {"total_tokens": self.total_tokens, "tokens_per_s": round(line["tokens"] / seconds, 1), **parts}
        line |= self.throughput.mfu(line["tokens"] / seconds)
        self.log.write(line)
        if sheet is not None:
            self.log.show("drawings", sheet, self.step)
        self.job.observe(line)
        note = f"{self.loader.stage}: loss {line['loss']:.3f}, {line['tokens_per_s']:,.0f} tokens/s"
        self.job.report(self.step, self.total, note)

    def _line(self, taken: Taken, micro: Batch, rate: float) -> tuple[dict[str, Any], Any]:
        """The step's figures, and a sheet of drawings or None; with what is looked at in this step only."""
        line: dict[str, Any] = {"step": self.step, "stage": self.loader.stage, **figures_of(taken.sums)}
        line |= {"grad_norm": taken.norm, "learning_rate": rate, "skipped_steps": self.guard.skipped}
        line |= {KEYS[finding.rule]: finding.ratio for finding in taken.findings}
        if back := [asdict(r) for r in self.guard.rollbacks if r.to == self.step - 1]:
            line["rollbacks"] = back
        line |= self.watch.look(self.step, micro)
        self.tokens += line["tokens"]
        self.last = {k: round(line[k], 4) for k in ("loss", "loss_text", "loss_image") if k in line} | {
            k: v for k, v in self.last.items() if k == "held_out"
        }
        if self.step % self.config.evaluate_every == 0 or self.step == self.total:
            losses = held_out_losses(self.engine, self.job.mix, self.config.evaluate_sequences, self.loader.micro_batch)
            line["held_out"] = self.last["held_out"] = losses
        draw = self.job.drawings
        sheet = None if draw is None else draw.sheet(self.engine, self.job.model, self.step, self.total)
        return line, sheet

    def _save(self) -> None:
        if self.log is not None:
            self.log.keep()
        self.checkpoints.save(self.step, self._state())
