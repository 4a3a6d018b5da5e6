"""One rank of a small training, as a process: ``rank.py FOLDER``; options in FOLDER, the rank in the environment."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from infra.settings import ResourcesConfig
from infra.storage import Storage
from model.data.loader import SequenceLoader
from model.data.steps import BatchSizes
from model.training.config import OptimizerConfig, PretrainConfig, ScheduleConfig
from model.training.loop import Training, train
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer

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


def main(folder: Path) -> None:
    options: dict[str, Any] = pickle.loads((folder / "options.pickle").read_bytes())
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    config = CONFIG.model_copy(update=options.get("config", {}))
    mix, done = Storage(options["mix"]), [0]

    def report(step: int, total: int, note: str) -> None:
        done[0] = step
        if step == options.get("die_at"):
            os._exit(9)  # as kill -9: nothing is flushed, nothing is tidied up

    batch = BatchSizes.of(config.batch, ((phase.until, phase.batch) for phase in config.batch_ramp))
    loader = SequenceLoader(mix, options.get("run", "pretrain"), batch, rank, world, 2)
    model = Transformer(MODEL.model_copy(update=options.get("model", {})), loader.vocabulary.size).initialise(7)
    if hook := options.get("hook"):
        HOOKS[hook](model)
    job = Training(
        model=model,
        loader=loader,
        config=config,
        resources=ResourcesConfig(**{"precision": "fp32", **options.get("resources", {})}),
        store=Storage(options["store"]),
        mix=mix,
        seed=11,
        report=report,
        should_stop=lambda: done[0] == options.get("stop_at"),
    )
    try:
        ended: Any = train(job)
        ended.weights = {name: weight.numpy() for name, weight in ended.weights.items()}
    except Exception as error:
        traceback.print_exc()
        ended = error
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(ended))
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
