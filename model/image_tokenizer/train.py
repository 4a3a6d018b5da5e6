"""Training of the image tokenizer: one loop, for one process or for every rank of a process group.

Nothing here knows of Ray or of recipes' files. Equal inputs on an equal number of workers give equal weights, and a
training that was killed and resumed from its checkpoint gives the weights of an undisturbed one.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable

import torch
from torch import Tensor

from infra.errors import StepFailed, StoreError
from infra.settings import ResourcesConfig
from infra.storage import Storage
from model.image_tokenizer.batches import Pictures, Regions
from model.image_tokenizer.config import ImageTokenizerConfig, ImageTokenizerTraining
from model.image_tokenizer.load import save_image_tokenizer
from model.image_tokenizer.losses import perplexity
from model.image_tokenizer.trainer import ADVICE, FORMAT, Trainer
from model.image_tokenizer.watch import HeldOut, Sheet
from model.training.monitors import METRICS, MetricsLog

__all__ = ["CHECKPOINTS", "KEEP", "METRICS", "Report", "Show", "remove_checkpoints", "train"]

CHECKPOINTS = "checkpoints"
KEEP = 2

Report = Callable[[int, dict[str, float]], None]
"""Called on the first worker with the steps done and the step's figures."""
Show = Callable[[int, Sheet], None]
"""Called on the first worker with the steps done and a sheet of reconstructions."""


def train(
    config: ImageTokenizerConfig,
    training: ImageTokenizerTraining,
    pictures: Pictures,
    store: Storage,
    *,
    regions: Regions | None = None,
    held_out: Pictures | None = None,
    seed: int = 0,
    identity: str = "",
    device: str = "cpu",
    precision: str = "fp32",
    resources: ResourcesConfig | None = None,
    report: Report = lambda step, figures: None,
    show: Show = lambda step, sheet: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains to the last step, going on from the newest checkpoint, and saves the tokenizer in ``store``; True if done.

    Every worker calls this with the same arguments; ``store`` must be one that all of them see. Left there:
    ``model.safetensors``, ``config.json``, ``metrics.jsonl`` (one JSON object a line), TensorBoard's event files where
    the storage is a local disk, and the last checkpoints.

    Args:
        pictures: (n, resolution, resolution, 3) uint8.
        regions: boxes of faces and salient objects in them, for the terms that weigh these more.
        held_out: pictures as above that figures are taken of every ``evaluate_every`` steps and at the end.
        identity: a fingerprint of config and pictures; a checkpoint that carries another one is refused.
        precision: ``fp32``, or ``bf16`` for autocast.
        resources: whose ``deepspeed`` counts, save for what is about the transformer.
        show: called on the first worker with the steps done and a sheet of held-out pictures with reconstructions.
        should_stop: asked before each step; once it is true on any worker, all save a checkpoint and False comes back.

    Raises:
        RecipeError: the recipe cannot be trained (see :class:`Trainer`).
        StoreError: a checkpoint is damaged or belongs to another training.
        StepFailed: a loss or a weight is not finite; the message names the step.
    """
    trainer = Trainer(
        config,
        training,
        pictures,
        regions=regions,
        seed=seed,
        identity=identity,
        device=device,
        precision=precision,
        resources=resources,
    )
    watch = HeldOut(trainer, held_out) if held_out is not None and len(held_out) else None
    first = trainer.workers.rank == 0
    _resume(trainer, store)
    log = MetricsLog(store, trainer.step) if first else None
    try:
        while trainer.step < training.steps:
            if trainer.workers.any(should_stop()):
                _save(trainer, store, log)
                return False
            losses = trainer.train_step()
            done = trainer.step
            last = done == training.steps
            checkpoint = last or done % training.checkpoint_every == 0
            looks = watch is not None and (last or done % training.evaluate_every == 0)
            if checkpoint or looks or done % training.log_every == 0:
                figures = _figures(trainer, losses)
                seen = watch.look() if watch is not None and looks else None
                if log is not None:
                    log.write({"step": done, **figures} | ({} if seen is None else {"held_out": seen.figures}))
                    if seen is not None:
                        figures |= {f"held_out_{name}": figure for name, figure in seen.figures.items()}
                        log.show("held_out/reconstructions", seen.sheet, done)
                        show(done, seen.sheet)
                    report(done, figures)
            if checkpoint:
                _save(trainer, store, log)
    finally:
        if log is not None:
            log.close()
    if first:
        save_image_tokenizer(store, config, trainer.weights())
    trainer.workers.barrier()
    return True


def checkpoint_step(store: Storage) -> int:
    """Steps done at the newest checkpoint; 0 if there is none."""
    names = store.list(CHECKPOINTS, ".pt")
    return int(names[-1].removeprefix("step-").removesuffix(".pt")) if names else 0


def remove_checkpoints(store: Storage) -> None:
    """What a finished training no longer needs."""
    store.sweep(CHECKPOINTS)
    for name in store.list(CHECKPOINTS):
        store.delete(f"{CHECKPOINTS}/{name}")


def _figures(trainer: Trainer, losses: dict[str, Tensor]) -> dict[str, float]:
    """The step's losses over all workers, and the codes won since the last figures."""
    names = sorted(losses)
    means = trainer.workers.mean(torch.stack([losses[n].detach().float() for n in names]))
    figures = {name: round(float(value), 6) for name, value in zip(names, means, strict=True)}
    if not all(torch.isfinite(means)):
        wrong = ", ".join(n for n in names if not abs(figures[n]) < float("inf"))
        raise StepFailed(f"image tokenizer, step {trainer.step}: {wrong} not finite. {ADVICE}")
    mse = figures.pop("mse")  # of values from -1 to 1, whose peak-to-peak is 2
    figures["psnr"] = round(float(10 * torch.log10(torch.tensor(4 / max(mse, 1e-10)))), 3)
    counts_K = trainer.workers.sum(trainer.logged_K.clone())
    trainer.logged_K.zero_()
    figures["codebook_used"] = round(float((counts_K > 0).float().mean()), 4)
    figures["perplexity"] = round(perplexity(counts_K.cpu()), 2)
    return figures


def _save(trainer: Trainer, store: Storage, log: MetricsLog | None) -> None:
    """Metrics first, then the checkpoint: lines past the newest checkpoint are dropped when a training goes on."""
    _check_weights(trainer)
    state = trainer.state_dict()
    if log is not None:
        log.keep()
        sink = io.BytesIO()
        torch.save(state, sink)
        store.put(f"{CHECKPOINTS}/step-{trainer.step:09d}.pt", sink.getvalue())
        for name in store.list(CHECKPOINTS, ".pt")[:-KEEP]:
            store.delete(f"{CHECKPOINTS}/{name}")
    trainer.workers.barrier()


def _check_weights(trainer: Trainer) -> None:
    """A step's losses say nothing of the gradients that followed from them; weights are equal on all workers."""
    for name, weights in (("the tokenizer", trainer.model), ("the discriminator", trainer.discriminator)):
        if not all(bool(p.isfinite().all()) for p in weights.parameters()):
            raise StepFailed(f"image tokenizer, step {trainer.step}: weights of {name} are not finite. {ADVICE}")


def _resume(trainer: Trainer, store: Storage) -> None:
    names = store.list(CHECKPOINTS, ".pt")
    if not names:
        return
    name = f"{CHECKPOINTS}/{names[-1]}"
    where = store.url(name)
    try:
        state = torch.load(io.BytesIO(store.get(name)), map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise StoreError(
                f"{where}: checkpoint format {state['format']}; this Calumma reads {FORMAT}. Delete "
                f"{store.url(CHECKPOINTS)} to train anew."
            )
        if state["identity"] != trainer.identity:
            raise StoreError(
                f"{where}: a checkpoint of another training ({state['identity'][:12]}; this one is "
                f"{trainer.identity[:12]}). Delete it, or use another work folder."
            )
        if state["precision"] != trainer.precision:
            raise StoreError(
                f"{where}: a checkpoint of a training in {state['precision']}; this one would go on in "
                f"{trainer.precision}. Set resources.precision: {state['precision']}, or delete "
                f"{store.url(CHECKPOINTS)} to train anew."
            )
        trainer.load_state_dict(state)
    except (RuntimeError, LookupError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as e:
        raise StoreError(f"{where}: not a checkpoint that can be read ({e}). Delete this file and run again.") from e
    trainer.workers.barrier()
