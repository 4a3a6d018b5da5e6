"""One rank of a small training, as a process."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from infra.deepspeed_json import deepspeed_json
from infra.settings import ResourcesConfig
from infra.storage import Storage
from model.data.loader import Batch, SequenceLoader
from model.data.steps import BatchSizes
from model.generation.config import GenerationConfig
from model.training import loop
from model.training.checkpoint import list_checkpoints
from model.training.config import GuardConfig, OptimizerConfig, PretrainConfig, ScheduleConfig
from model.training.engine import start_engine
from model.training.guard import Guard
from model.training.loop import Training, train
from model.training.module import TrainingModule
from model.training.optimizer import make_optimizer
from model.training.state import KINDS, pieces, steps_taken
from model.training.step import Stepper
from model.training.stored import StoredState
from model.training.watch import throughput
from model.training.watch.config import DrawingsConfig, WatchConfig
from model.training.watch.drawings import Codes, Drawings, Prompt
from model.transformer.config import TransformerConfig
from model.transformer.load import meta_transformer
from model.transformer.model import Transformer
from model.vocabulary import BOS, Vocabulary

MODEL = TransformerConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn=64, dropout=0.1)
CONFIG = PretrainConfig(
    batch=8,
    optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-8),
    schedule=ScheduleConfig(warmup_steps=2),
    checkpoint_every=3,
    evaluate_every=4,
    evaluate_sequences=5,
)


def nan_loss(model: Transformer) -> None:
    """From the third step on, the hidden states of rank 1 are NaN."""
    calls = [0]

    def spoil(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return output * float("nan") if calls[0] > 4 and dist.get_rank() == 1 else output  # two micro-batches a step

    model.norm.register_forward_hook(spoil)


def bad_gradient(value: float) -> Callable[[Transformer], None]:
    """The third step's loss is finite and one element of one gradient, of rank 1 alone, is not."""

    def hook(model: Transformer) -> None:
        calls = [0]

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            calls[0] += 1
            if calls[0] <= 4 or dist.get_rank() != 1:
                return gradient
            spoiled = gradient.clone()
            spoiled.view(-1)[-1] = value
            return spoiled

        model.embedding.weight.register_hook(spoil)

    return hook


HOOKS = {
    "nan_loss": nan_loss,
    "nan_gradient": bad_gradient(float("nan")),
    "infinite_gradient": bad_gradient(float("inf")),
}


@contextmanager
def spoiled(sequence: int | None, loss: float, gradient: float) -> Iterator[None]:
    """Multiplies the loss as it is seen, and as it is differentiated, where a micro-batch has a certain sequence."""
    real = TrainingModule.forward

    def forward(self: TrainingModule, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        total, figures = real(self, batch)
        if not self.training or "sequences" not in batch or sequence not in batch["sequences"].tolist():
            return total, figures
        figures = figures.clone()
        for place, name in enumerate(self.sums):
            if name.startswith("nll_"):
                figures[place] *= loss
        return total * gradient, figures

    TrainingModule.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrainingModule.forward = real  # type: ignore[method-assign]


def main(folder: Path, options: dict[str, Any], rank: int, world: int) -> None:
    """Does the runs that the options ask for, one after the other, in one process group; says how in ``folder``."""
    log = os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    throughput.SIDES["cpu"] = 64  # the peak is measured at every start
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    runs = options.pop("runs", [{}])
    ended = [run(options | more, rank, world) for more in runs]
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(ended if len(runs) > 1 else ended[0]))
    print(f"{time.process_time():.1f} s of processor time", flush=True)
    dist.barrier()


def kill() -> None:
    """kill -9, once a checkpoint that is being written is whole, so that the tests know which there are."""
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join()
    os.kill(os.getpid(), signal.SIGKILL)


def drawings(every: int, pictures: int, vocabulary: Vocabulary, store: Storage) -> Drawings:
    """Draws for what the mixture's texts look like; the codes go to ``drawn-STEP.json``."""
    prompts = [
        Prompt(f"code {c}", (BOS, *(vocabulary.text_start + 3 * c + j for j in range(3)), vocabulary.boi), (c,) * 4)
        for c in range(pictures)
    ]

    def show(step: int, drawn_PN: Codes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        store.put(f"drawn-{step:03d}.json", json.dumps(drawn_PN.tolist()).encode())
        return np.full((2, 3, 3), step, np.uint8)

    return Drawings(prompts, DrawingsConfig(every=every), vocabulary, GenerationConfig(), 5, show)


def accumulated(micros: int, resources: ResourcesConfig) -> float:
    """One step of so many micro-batches in bf16, on one rank: how far the gradient that AdamW took, by its first
    moment, is from the same micro-batches' bf16 gradients added up in float32; relative to that one's norm."""
    draw = torch.Generator().manual_seed(1)

    def micro() -> Batch:
        ids = torch.randint(4, 64, (1, 17), generator=draw)
        row = torch.arange(16)[None]
        return {
            **{"tokens": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous(), "positions": row},
            **{"documents": torch.zeros_like(row, dtype=torch.int32), "image": torch.zeros_like(row, dtype=torch.bool)},
            "sequences": torch.tensor([0]),
        }

    batch = [micro() for _ in range(micros)]
    config = MODEL.model_copy(update={"dropout": 0.0})
    plain = TrainingModule(Transformer(config, 64).initialise(7).bfloat16(), 1e-5, 1.0)
    sums = {name: torch.zeros(p.shape) for name, p in plain.transformer.named_parameters()}
    for one in batch:
        (plain(one)[0] / (16 * micros)).backward()
        for name, p in plain.transformer.named_parameters():
            assert p.grad is not None
            sums[name] += p.grad.float()
            p.grad = None
    model = Transformer(config, 64).initialise(7)
    optimizer = make_optimizer(model, OptimizerConfig())
    settings = deepspeed_json(resources, bf16=True, world=1, micro_batch=1, accumulation=micros, clip=1e9)
    engine = start_engine(TrainingModule(model, 1e-5, 1.0), optimizer, settings)
    Stepper(engine, Guard(GuardConfig()), seed=0, dropout=False, image_weight=1.0).take(
        batch, 0, 1e-4, "one", lambda: False
    )
    found = {name: torch.zeros(total.numel()) for name, total in sums.items()}
    for piece in pieces(engine, model):
        found[piece.name][piece.start : piece.start + len(piece.exp_avg)] = piece.exp_avg / (1 - 0.9)
    far = sum(float((found[name] - total.flatten()).square().sum()) for name, total in sums.items())
    return float((far / sum(float(total.square().sum()) for total in sums.values())) ** 0.5)


def run(options: dict[str, Any], rank: int, world: int) -> Any:
    """One training; how it ended, or what it raised."""
    if "accumulate" in options:
        return accumulated(options["accumulate"], ResourcesConfig(**options["resources"]))
    config = CONFIG.model_copy(update=options.get("config", {}))
    mix, done, reports = Storage(options["mix"]), [0], [0]

    def report(step: int, total: int, note: str) -> None:
        done[0], reports[0] = step, reports[0] + 1
        if step == options.get("die_at") or reports[0] == options.get("die_after"):
            kill()

    def should_stop() -> bool:
        """Asked after the last backward of every step, and before the optimizer moves."""
        if done[0] == options.get("die_in"):
            kill()
        return done[0] == options.get("stop_at")

    batch = BatchSizes.of(config.batch, ((phase.until, phase.batch) for phase in config.batch_ramp))
    loader = SequenceLoader(mix, options.get("run", "pretrain"), batch, rank, world, 2)
    if "skip" in options:
        loader.skip(*options["skip"])
    model = meta_transformer(MODEL.model_copy(update=options.get("model", {})), loader.vocabulary.size)
    sizes: list[int] = []
    count = "check_sizes" in options
    weights = counted(model.draw(7), sizes) if count else model.draw(7)
    whole = "hook" in options or "whole" in options
    if whole:
        model = Transformer(model.config, loader.vocabulary.size).initialise(7)
    if hook := options.get("hook"):
        HOOKS[hook](model)
    asked = options.get("drawings")
    job = Training(
        model=model,
        loader=loader,
        config=config,
        resources=ResourcesConfig(**{"precision": "fp32", **options.get("resources", {})}),
        store=Storage(options["store"]),
        mix=mix,
        seed=11,
        weights=None if whole else weights,
        watch=options.get("watch", WatchConfig(every=2)),
        origin=(Storage(options["origin"]), options["origin_step"]) if "origin" in options else None,
        drawings=drawings(*asked, loader.vocabulary, Storage(options["store"])) if asked else None,
        report=report,
        should_stop=should_stop,
    )
    engines: list[Any] = []

    gc.collect()
    before = tensor_bytes() if count else 0

    def start(*arguments: Any) -> Any:
        if count:
            sizes.append(tensor_bytes())
        engines.append(start_engine(*arguments))
        return engines[-1]

    try:
        with spoiled(*options.get("spoil", (None, 1.0, 1.0))), patch.object(loop, "start_engine", start):
            ended: Any = train(job)
        ended.weights = {name: weight.numpy() for name, weight in ended.weights.items()}
    except Exception as error:
        traceback.print_exc()
        ended = error
    if count:
        ended.facts["sizes"] = [[0]] * world
        dist.all_gather_object(ended.facts["sizes"], [size - before for size in sizes])
    return (ended, is_as_stored(engines[0], model, job.store)) if "check_state" in options else ended


def counted(weights: Iterable[tuple[str, torch.Tensor]], sizes: list[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Notes the bytes of all tensors each time that a weight is made and given away, on the rank that asks for them."""
    for name, weight in weights:
        sizes.append(tensor_bytes())
        yield name, weight
        del weight


def tensor_bytes() -> int:
    """Bytes of the memory behind all tensors of this process that Python knows of."""
    # Not isinstance, which would ask the objects themselves, and some warn.
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    found = [x.untyped_storage() for x in tensors if x.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def is_as_stored(engine: Any, model: Transformer, store: Storage) -> bool:
    """Whether this rank's weights, moments and AdamW's count are, bit for bit, those of the newest checkpoint."""
    stored = StoredState(store, [f.name for f in list_checkpoints(store)[0].files])
    for piece in pieces(engine, model):
        kept = piece._replace(**{kind: torch.empty_like(getattr(piece, kind)) for kind in KINDS})
        stored.fill(kept)
        if not all(torch.equal(getattr(piece, kind), getattr(kept, kind)) for kind in KINDS):
            return False
    return steps_taken(engine) == stored.taken
