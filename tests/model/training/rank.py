"""One rank of a small training, as a process: ``rank.py FOLDER``; options in FOLDER, the rank in the environment."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from infra.settings import ResourcesConfig
from infra.storage import Storage
from model.data.loader import Batch, SequenceLoader
from model.data.steps import BatchSizes
from model.generation.config import GenerationConfig
from model.training.config import OptimizerConfig, PretrainConfig, ScheduleConfig
from model.training.loop import Training, train
from model.training.module import TrainingModule
from model.training.watch.config import DrawingsConfig, WatchConfig
from model.training.watch.drawings import Codes, Drawings, Prompt
from model.transformer.config import TransformerConfig
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
    """From the third forward on, the hidden states are NaN."""
    calls = [0]

    def spoil(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return output * float("nan") if calls[0] > 4 else output  # two micro-batches a step

    model.norm.register_forward_hook(spoil)


def nan_gradient(model: Transformer) -> None:
    """The third step's loss is finite and one gradient is not."""
    calls = [0]

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return gradient * float("nan") if calls[0] > 4 else gradient

    model.embedding.weight.register_hook(spoil)


HOOKS = {"nan_loss": nan_loss, "nan_gradient": nan_gradient}


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


def main(folder: Path) -> None:
    """Does the runs that the options ask for, one after the other, in one process group."""
    options: dict[str, Any] = pickle.loads((folder / "options.pickle").read_bytes())
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    runs = options.pop("runs", [{}])
    ended = [run(options | more, rank, world) for more in runs]
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(ended if len(runs) > 1 else ended[0]))
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


def run(options: dict[str, Any], rank: int, world: int) -> Any:
    """One training; how it ended, or what it raised."""
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
    model = Transformer(MODEL.model_copy(update=options.get("model", {})), loader.vocabulary.size).initialise(7)
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
        watch=options.get("watch", WatchConfig(every=2)),
        drawings=drawings(*asked, loader.vocabulary, Storage(options["store"])) if asked else None,
        accept_batch=options.get("accept_batch", False),
        report=report,
        should_stop=should_stop,
    )
    try:
        with spoiled(*options.get("spoil", (None, 1.0, 1.0))):
            ended: Any = train(job)
        ended.weights = {name: weight.numpy() for name, weight in ended.weights.items()}
    except Exception as error:
        traceback.print_exc()
        ended = error
    return ended


if __name__ == "__main__":
    main(Path(sys.argv[1]))
