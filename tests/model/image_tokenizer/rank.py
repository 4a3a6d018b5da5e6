"""One of two workers of trainings: ``rank.py RANK FOLDER``, which holds ``jobs.json`` and the arrays that it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
import torch.distributed as dist

from infra.storage import Storage
from model.image_tokenizer.batches import Regions
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining
from model.image_tokenizer.train import train


def work(job: dict[str, Any], folder: Path, arrays: dict[str, Any]) -> None:
    done = 0

    def report(step: int, figures: dict[str, float]) -> None:
        nonlocal done
        done = step

    train(
        ImageTokenizerConfig(**job["config"]),
        ImageTokenizerTraining(**job["training"]),
        arrays["pictures"],
        Storage(folder / job["store"]),
        regions=Regions(arrays.get("faces"), arrays.get("objects")),
        held_out=arrays.get("held_out"),
        report=report,
        should_stop=lambda: done >= job.get("stop_at", 1 << 30),
    )


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    for job in json.loads((folder / "jobs.json").read_text()):
        work(job, folder, arrays)
    dist.destroy_process_group()
