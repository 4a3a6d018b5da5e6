"""One of two workers of a training: ``rank.py RANK FOLDER``, which holds ``pictures.npy`` and ``job.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
import torch.distributed as dist

from infra.storage import Storage
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining
from model.image_tokenizer.train import train

if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    job = json.loads((folder / "job.json").read_text())
    train(
        ImageTokenizerConfig(**job["config"]),
        ImageTokenizerTraining(**job["training"]),
        np.load(folder / "pictures.npy"),
        Storage(folder / "two"),
    )
    dist.destroy_process_group()
