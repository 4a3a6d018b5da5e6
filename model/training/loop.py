"""The training loop of pre-training and fine-tuning: one loop, driving a DeepSpeed engine on every rank.

It runs inside an initialised ``torch.distributed`` group and knows nothing of who started it: progress and stop
requests are callbacks. A step is: fetch the global batch's micro-batches, agree on how many labels count, forward and
backward each, check that the loss is finite, move the optimizer, write the figures down. The loss is the (weighted)
mean over all counted labels of the *global* batch, however that is spread over ranks and micro-batches.

Same world size, same inputs: parameters after step N are the same bits whether or not the run was interrupted.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from infra.deepspeed_json import deepspeed_json
from infra.settings import ResourcesConfig
from infra.storage import Storage
from model.data.loader import Batch, SequenceLoader
from model.training.checkpoint import Checkpoints
from model.training.config import FinetuneConfig, PretrainConfig
from model.training.engine import start_engine
from model.training.evaluate import held_out_losses
from model.training.guard import NonFiniteError, SpikeGuard
from model.training.module import SUMS, TrainingModule
from model.training.monitors import MetricsLog
from model.training.optimizer import make_optimizer, set_learning_rate, use_bf16
from model.training.schedule import factor
from model.transformer.loss import IGNORE
from model.transformer.model import Transformer


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
    report: Callable[[int, int, str], None] = lambda step, total, note: None
    """Called on rank 0 after every step: steps done, steps in all, a short note."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked on rank 0 every step; once true, the training checkpoints and returns."""


@dataclass
class Outcome:
    """How a training ended."""

    finished: bool
    """False: it was asked to stop, and goes on from its checkpoint when run again."""
    step: int
    weights: dict[str, Tensor] = field(default_factory=dict)
    """float32 weights on rank 0; empty elsewhere and unless finished."""
    facts: dict[str, Any] = field(default_factory=dict)


def train(job: Training) -> Outcome:
    """Trains to the loader's end, from the last checkpoint where there is one. Called by all ranks together.

    Raises:
        NonFiniteError: a loss or gradient is not finite; raised on all ranks before the optimizer moves.
        StoreError: the checkpoint belongs to another plan or number of workers.
        RecipeError: ``resources.deepspeed`` has a key that DeepSpeed would ignore.
    """
    return _Run(job).train()


class _Run:
    """The state of one call of :func:`train`."""

    def __init__(self, job: Training) -> None:
        self.job, self.config, self.loader = job, job.config, job.loader
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.bf16 = use_bf16(job.resources)
        job.model.run_with(
            job.resources.attention_backend, job.resources.activation_checkpointing, job.resources.compile
        )
        self.engine = start_engine(
            TrainingModule(job.model, self.config.z_loss, self.config.image_weight, self.config.attention),
            make_optimizer(job.model, self.config.optimizer),
            deepspeed_json(
                job.resources,
                bf16=self.bf16,
                world=self.world,
                micro_batch=self.loader.micro_batch,
                accumulation=self.loader.max_accumulation,
                clip=self.config.optimizer.clip,
            ),
        )
        self.device = self.engine.device
        self.spikes = SpikeGuard(self.config.guard)
        self.checkpoints = Checkpoints(job.store, self.config.keep_checkpoints)
        found = self.checkpoints.load_latest(self.engine)
        self.step = found.step if found else 0
        if found:
            self.loader.load_state_dict(found.state["loader"])
            self.spikes.load_state_dict(found.state["spikes"])
        self.total = self.loader.steps
        self.log = MetricsLog(job.store, self.step) if self.rank == 0 else None
        self.started, self.tokens, self.norm = time.monotonic(), 0, 0.0
        self.last: dict[str, Any] = dict(found.state["last"]) if found else {}

    def train(self) -> Outcome:
        self.engine.train()
        batches, stopped = iter(self.loader), False
        try:
            while self.step < self.total and not stopped:
                micros = [next(batches) for _ in range(self.loader.accumulation)]
                stopped = self._step([{k: v.to(self.device) for k, v in m.items()} for m in micros])
                if stopped or self.step % self.config.checkpoint_every == 0 or self.step == self.total:
                    self._save()
        finally:
            if self.log is not None:
                self.log.close()
        if self.step < self.total:
            return Outcome(False, self.step)
        seconds = time.monotonic() - self.started
        facts = {
            "steps": self.step,
            "parameters": self.job.model.config.parameters(self.job.model.vocabulary_size),
            "tokens": self.log.total_tokens if self.log else 0,
            "tokens_per_s": round(self.tokens / seconds, 1) if self.tokens else None,
            "world": self.world,
            "precision": "bf16" if self.bf16 else "fp32",
            "final": self.last,
        }
        return Outcome(True, self.step, self._weights(), facts)

    def _step(self, micros: list[Batch]) -> bool:
        """One optimizer step; whether the training was asked to stop."""
        began = time.monotonic()
        rate = self.config.optimizer.learning_rate * factor(self.config.schedule, self.step, self.total)
        set_learning_rate(self.engine.optimizer, rate)
        weight = torch.tensor(sum(self._weight(m) for m in micros), dtype=torch.float64, device=self.device)
        dist.all_reduce(weight)
        # DeepSpeed divides by the micro-batches and averages over the ranks; we want the mean over counted labels.
        scale = len(micros) * self.world / max(1.0, float(weight))
        if self.engine.gradient_accumulation_steps() != len(micros):  # the batch grows
            self.engine.set_train_batch_size(len(micros) * self.loader.micro_batch * self.world)
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        for number, micro in enumerate(micros):
            # DeepSpeed would count micro-batches since its start: in a batch that grew the count is out of step.
            self.engine.set_gradient_accumulation_boundary(number == len(micros) - 1)
            if self.job.model.config.dropout:
                torch.manual_seed(_seed(self.job.seed, self.step, number, self.rank))
            total, figures = self.engine(micro)
            sums += figures
            self.engine.backward(total * scale)
            if number == len(micros) - 1:
                if self.rank == 0 and self.job.should_stop():
                    sums[-1] = 1
                dist.all_reduce(sums)
                self._check(sums, micros)
            self.engine.step()
        norm = self._gradient_norm(micros)
        self.step += 1
        by = dict(zip(SUMS, sums.tolist(), strict=True))
        self._write(by, norm, rate, time.monotonic() - began)
        return bool(by["stop"])

    def _weight(self, micro: Batch) -> float:
        """The summed weight of a micro-batch's counted labels."""
        counted = micro["labels"] != IGNORE
        images = int((counted & micro["image"]).sum())
        return int(counted.sum()) - images + images * self.config.image_weight

    def _check(self, sums: Tensor, micros: list[Batch]) -> None:
        """Stops before the optimizer moves. ZeRO skips a step with non-finite gradients; stage 0 would take it."""
        if not bool(sums.isfinite().all()):
            raise self._not_finite("the loss is not finite", micros)
        if self.job.resources.zero_stage == 0 and not self.bf16:
            gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self.norm = float(torch.nn.utils.get_total_norm(gradients))  # the same on all ranks: already reduced
            if not math.isfinite(self.norm):
                raise self._not_finite("the gradients are not finite", micros)

    def _gradient_norm(self, micros: list[Batch]) -> float:
        """The norm before clipping; DeepSpeed says -1 or infinity where it skipped a step."""
        found = self.engine.get_global_grad_norm()
        norm = self.norm if found is None else float(found)
        if self.engine.skipped_steps or not math.isfinite(norm) or norm < 0:
            raise self._not_finite("the gradients are not finite", micros)
        return norm

    def _not_finite(self, what: str, micros: list[Batch]) -> NonFiniteError:
        mine = [int(s) for m in micros for s in m["sequences"].tolist() if s >= 0]
        everyone: list[list[int]] = [[] for _ in range(self.world)]
        dist.all_gather_object(everyone, mine)
        return NonFiniteError.of(what, self.step + 1, sorted(s for part in everyone for s in part), self.loader.stage)

    def _write(self, by: Mapping[str, float], norm: float, rate: float, seconds: float) -> None:
        """The step's line; every rank takes part in the held-out losses, rank 0 writes."""
        counted = by["n_text"] + by["n_image"]
        line: dict[str, Any] = {"step": self.step, "stage": self.loader.stage}
        line["loss"] = (by["nll_text"] + by["nll_image"]) / max(1.0, counted)
        for modality in ("text", "image"):
            if by[f"n_{modality}"]:
                line[f"loss_{modality}"] = by[f"nll_{modality}"] / by[f"n_{modality}"]
        line |= {"z2": by["z2"] / max(1.0, counted), "log_z": by["log_z"] / max(1.0, counted), "grad_norm": norm}
        spike = self.spikes.spike(norm)
        if spike is not None:
            line["spike"] = spike
        line |= {"learning_rate": rate, "output_norm": by["output_norm"] / max(1.0, by["tokens"])}
        line |= {"image_share": by["n_image"] / max(1.0, counted), "tokens": int(by["tokens"])}
        self.tokens += int(by["tokens"])
        self.last = {k: round(line[k], 4) for k in ("loss", "loss_text", "loss_image") if k in line} | {
            k: v for k, v in self.last.items() if k == "held_out"
        }
        if self.step % self.config.evaluate_every == 0 or self.step == self.total:
            losses = held_out_losses(self.engine, self.job.mix, self.config.evaluate_sequences, self.loader.micro_batch)
            line["held_out"] = self.last["held_out"] = losses
        if self.log is None:
            return
        self.log.total_tokens += line["tokens"]
        line |= {"total_tokens": self.log.total_tokens, "tokens_per_s": round(line["tokens"] / seconds, 1)}
        self.log.write(line)
        note = f"{self.loader.stage}: loss {line['loss']:.3f}, {line['tokens_per_s']:,.0f} tokens/s"
        if spike is not None:
            print(f"step {self.step}: gradient norm {norm:.2f} is {spike:.1f} times the rolling median", flush=True)
        self.job.report(self.step, self.total, note)

    def _save(self) -> None:
        if self.log is not None:
            self.log.keep()
        state = {"loader": self.loader.state_dict(), "spikes": self.spikes.state_dict(), "last": self.last}
        self.checkpoints.save(self.engine, self.step, state)

    def _weights(self) -> dict[str, Tensor]:
        """float32 weights, on rank 0: the engine's where it holds them whole, else those of the last checkpoint."""
        prefix = "transformer."
        zero = self.job.resources.zero_stage
        if zero == 0 or (zero < 3 and not self.bf16):
            state = self.engine.module.state_dict() if self.rank == 0 else {}
        elif self.rank == 0:
            from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

            folder = self.checkpoints.disk(self.step)
            state = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), folder.name)
        else:
            state = {}
        return {name.removeprefix(prefix): w.detach().float() for name, w in state.items()}


def _seed(*numbers: int) -> int:
    """A seed for torch from (seed, step, micro-step, rank): 63 bits of their hash."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
