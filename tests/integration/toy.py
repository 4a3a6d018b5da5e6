"""The whole pipeline at toy size, through the command line, as users run it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe, load_recipe

TOY = [
    *("sources.emoji.limit=60", "sources.quality.limit=40", "sources.library.limit=8", "sources.topics.limit=20"),
    *("sources.stories.limit=20", "sources.instructions.limit=120", "scan.item_samples=24"),
    *(
        "image_tokenizer.channels=8",
        "image_tokenizer.norm_groups=4",
        "image_tokenizer.z_channels=8",
        "image_tokenizer.embed_dim=8",
    ),
    *("image_tokenizer_training.steps=12", "image_tokenizer_training.batch=8"),
    *("image_tokenizer_training.checkpoint_every=6", "image_tokenizer_training.perceptual_weight=0"),
    *("model.dim=32", "model.layers=2", "model.heads=2", "mix.tokens=115000", "mix.held_out_sequences=4"),
    *("pretrain.batch=16", "pretrain.checkpoint_every=5", "pretrain.evaluate_every=5", "pretrain.evaluate_sequences=2"),
    *("pretrain.schedule.warmup_steps=4", "finetune.schedule.warmup_steps=0"),
    *("finetune.batch=4", "finetune.epochs=1", "finetune.evaluate_every=100", "finetune.evaluate_sequences=2"),
    *("evaluation.pictures=12", "evaluation.drawings=4", "evaluation.captions=2", "evaluation.losses=2"),
    *("generation.max_text_tokens=8", "finetune_mix.weights={}"),
]
"""Settings that make recipes/emoji.yaml run in about a minute; the steps are the same."""


def toy_recipe(*more: str) -> Recipe:
    return load_recipe("emoji", [*TOY, *more])


def command(workdir: Path | str, *words: str, settings: tuple[str, ...] = ()) -> list[str]:
    sets = [w for s in (*TOY, *settings) for w in ("--set", s)]
    return [sys.executable, "-m", "flows.cli", "run", "emoji", "--workdir", str(workdir), *sets, *words]


def start(workdir: Path | str, *words: str, settings: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(workdir, *words, settings=settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,
    )


def run(workdir: Path | str, *words: str, settings: tuple[str, ...] = (), code: int = 0) -> str:
    process = start(workdir, *words, settings=settings)
    output, _ = process.communicate()
    assert process.returncode == code, output
    return output


def jobs(workdir: Path, step: str = "") -> list[str]:
    return sorted(p.parent.name for p in (workdir / "runs" / "jobs").glob(f"{step}*/submitted"))


def store_files(workdir: Path, steps: tuple[str, ...], recipe: Recipe) -> dict[str, str]:
    """sha256 of every file of the steps' outputs, by relative path."""
    prints = fingerprints(recipe)
    found = {}
    for step in steps:
        root = workdir / folder_of(step, prints[step])
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            found[str(path.relative_to(workdir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


def processes(*words: str) -> list[psutil.Process]:
    """Processes whose command line holds all the words."""
    found = []
    for p in psutil.process_iter():
        try:
            line = " ".join(p.cmdline())
        except psutil.Error:
            continue
        if line and all(w in line for w in words):
            found.append(p)
    return found
