"""Checkpoints: the state of a training in pieces, real only once a manifest, written last, names them all.

Layout in a step's folder, on a disk as on S3::

    checkpoints/step-00000100/rank-00000-000.safetensors …     what each rank holds, see ``stored.py``
    checkpoints/step-00000100.json      step, layout, loader and guard state, every file's size and sha256

A killed run leaves at most files without a manifest, which are never read and are removed at the next start. Loading
checks every file against the manifest; where one is damaged, the checkpoint before it is used and that is said. Any
number of workers, ZeRO stage and precision can go on from any other's.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import entry, entry_of_file
from infra.store.manifest import FileEntry
from model.training.state import finish_loading, holds_everything, of_rank, pieces, steps_taken
from model.training.stored import Copied, StoredState, copied, files_of

FOLDER = "checkpoints"
FORMAT = "calumma-checkpoint"
VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, as its manifest says."""

    step: int
    """Steps done when it was taken."""
    layout: dict[str, Any]
    """World size, ZeRO stage and precision: with the same ones, each rank reads its own files."""
    state: dict[str, Any]
    """Loader, guard: plain JSON."""
    files: list[FileEntry]
    model: dict[str, Any] = field(default_factory=dict)
    """What the weights are of, by key, dropout aside. Empty in the oldest ones, which do not say."""

    @property
    def tag(self) -> str:
        return f"step-{self.step:08d}"

    @property
    def manifest(self) -> str:
        return f"{FOLDER}/{self.tag}.json"

    def dump(self) -> bytes:
        content = {
            "format": FORMAT,
            "version": VERSION,
            "step": self.step,
            "layout": self.layout,
            "model": self.model,
            "state": self.state,
            "files": [f.model_dump() for f in self.files],
        }
        return (json.dumps(content, sort_keys=True, indent=1) + "\n").encode()


def list_checkpoints(store: Storage) -> list[Checkpoint]:
    """The committed checkpoints of a step's folder, newest first."""
    names = store.list(FOLDER, ".json")
    return [read_checkpoint(store, f"{FOLDER}/{name}") for name in sorted(names, reverse=True)]


def read_checkpoint(store: Storage, name: str) -> Checkpoint:
    """A checkpoint's manifest."""
    where = store.url(name)
    try:
        raw = json.loads(store.get(name))
        if raw.get("format") != FORMAT:
            raise StoreError(f"{where}: expected format {FORMAT!r}, found {raw.get('format')!r}")
        if raw["version"] != VERSION:
            other = "newer" if raw["version"] > VERSION else "older"
            found = f"{where}: format version {raw['version']}; this Calumma reads {VERSION}."
            raise StoreError(f"{found} Use the {other} one that wrote it.")
        files = [FileEntry.model_validate(f) for f in raw["files"]]
        return Checkpoint(int(raw["step"]), dict(raw["layout"]), dict(raw["state"]), files, dict(raw.get("model", {})))
    except (ValueError, KeyError, AttributeError) as e:
        raise StoreError(f"{where}: not a checkpoint's manifest ({e}). Delete it to use the one before.") from e


class Checkpoints:
    """Saves and loads the state of a DeepSpeed engine. Every method is called by all ranks together.

    Training waits only for a copy of its state; hashing, writing and committing go on beside it, on a thread, until the
    next save at the latest.
    """

    def __init__(
        self,
        store: Storage,
        engine: Any,
        model: nn.Module,
        layout: Mapping[str, Any],
        *,
        describe: Mapping[str, Any] | None = None,
        keep: int,
        keep_every: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Removes what killed runs left.

        Args:
            store: The step's folder.
            engine: Around ``model``, with torch's AdamW.
            layout: What the ranks' pieces follow from: with the same one, a rank reads the files that it wrote.
            describe: What the model is beyond its parameters' shapes, as plain JSON: a checkpoint that says otherwise
                is refused.
            keep: So many of the newest are kept.
            keep_every: Those of a multiple of so many steps are kept for ever; None: none.
            say: Tells a person, on rank 0.
        """
        self._store, self._engine, self._model = store, engine, model
        self._keep, self._keep_every, self._say = keep, keep_every, say
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._layout = {"world": self._world, **layout}
        self._describe = dict(describe or {})
        # Collectives of the thread must not come between training's: they have a group of their own.
        self._group = dist.new_group(backend="gloo")
        self._thread: Thread | None = None
        self._failed: list[str] = []
        self.waited = 0.0
        """Seconds that training stood still for saving."""
        if self._rank == 0:
            self._sweep()
        dist.barrier()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Takes a checkpoint; it is committed at the latest when :meth:`wait` returns or the next one is taken."""
        began = time.monotonic()
        self.wait()
        tag = f"step-{step:08d}"
        if self._store.exists(f"{FOLDER}/{tag}.json"):
            return  # a run that was stopped right after a checkpoint starts from it again
        mine = copied(of_rank(self._engine, self._model, self._rank, self._world), steps_taken(self._engine))
        checkpoint = Checkpoint(step, self._layout, state, [], self._describe)
        self._thread = Thread(target=self._write, args=(checkpoint, mine), name=f"checkpoint {step}", daemon=True)
        self._thread.start()
        self.waited += time.monotonic() - began

    def wait(self) -> None:
        """Returns when what was saved is committed.

        Raises:
            StoreError: it could not be written, on some rank; raised on all.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failed = [self._failed]
        dist.broadcast_object_list(failed, 0, self._group)  # rank 0 has committed it, or knows why not
        if failed[0]:
            raise StoreError(f"{self._store.root}: a checkpoint could not be written: {failed[0][0]}")

    def load_latest(self, most: int | None = None) -> Checkpoint | None:
        """Loads the newest checkpoint, of at most ``most`` steps, whose files are whole; None where there is none.

        Raises:
            StoreError: it is of another model.
        """
        self.wait()
        for checkpoint in list_checkpoints(self._store):
            if most is not None and checkpoint.step > most:
                continue
            if self._whole(checkpoint, self._store):
                self._load(checkpoint, self._store)
                return checkpoint
            if self._rank == 0:
                self._say(f"{checkpoint.tag} is damaged and is not used")
                self._remove(checkpoint)
            dist.barrier()
        return None

    def load_from(self, other: Storage, step: int) -> Checkpoint:
        """Loads a checkpoint of another training's folder; what is saved from here on is this one's own.

        Raises:
            StoreError: there is none of that step, it is damaged, or it is of another model.
        """
        found = {checkpoint.step: checkpoint for checkpoint in list_checkpoints(other)}
        if step not in found:
            there = ", ".join(map(str, sorted(found))) or "none"
            raise StoreError(
                f"{other.url(FOLDER)}: no checkpoint of step {step}; those kept are of steps: {there}. "
                "Name one of them in continue_from.step."
            )
        if not self._whole(found[step], other):
            raise StoreError(f"{other.url(found[step].manifest)}: a file that it names is damaged or missing")
        self._load(found[step], other)
        return found[step]

    def replace(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Gives a checkpoint another state, and removes all that are newer, which no longer lead here."""
        self.wait()
        if self._rank == 0:
            for newer in list_checkpoints(self._store):
                if newer.step > checkpoint.step:
                    self._remove(newer)
            self._store.put(checkpoint.manifest, dataclasses.replace(checkpoint, state=state).dump())
        dist.barrier()

    def close(self) -> None:
        """Ends the thread's process group; nothing can be saved after it. All ranks together, after :meth:`wait`."""
        dist.destroy_process_group(self._group)

    def weights(self) -> Mapping[str, Tensor]:
        """float32 weights of the newest checkpoint, on rank 0, each read when it is asked for; empty elsewhere."""
        self.wait()
        if self._rank:
            return {}
        newest = list_checkpoints(self._store)[0]
        return StoredState(self._store, [f.name for f in newest.files]).weights()

    def _write(self, checkpoint: Checkpoint, mine: Copied) -> None:
        """On the thread: this rank's files, then, on rank 0 and when all have theirs, the manifest."""
        entries: list[FileEntry] = []
        failed = ""
        try:
            for number, data in enumerate(files_of(mine)):
                made = entry(f"{FOLDER}/{checkpoint.tag}/{file_prefix(self._rank)}{number:03d}.safetensors", data)
                self._store.put(made.name, data)
                entries.append(made)
        except Exception as e:  # the other ranks wait: all must hear of it
            failed = f"{type(e).__name__}: {e}"
        everyone: list[tuple[list[FileEntry], str]] = [([], "")] * self._world
        dist.all_gather_object(everyone, (entries, failed), self._group)
        self._failed = [why for _, why in everyone if why]
        if self._rank == 0 and not self._failed:
            files = sorted((f for part, _ in everyone for f in part), key=lambda f: f.name)
            try:
                self._store.put_new(checkpoint.manifest, dataclasses.replace(checkpoint, files=files).dump())
                self._prune()
            except Exception as e:
                self._failed = [f"{type(e).__name__}: {e}"]

    def _prune(self) -> None:
        for old in list_checkpoints(self._store)[self._keep :]:
            if not self._keep_every or old.step % self._keep_every or not old.step:
                self._remove(old)

    def _whole(self, checkpoint: Checkpoint, store: Storage) -> bool:
        """Whether every file is as its manifest says; each rank checks its share and all agree."""
        fine = True
        for want in checkpoint.files[self._rank :: self._world]:
            fine &= store.exists(want.name) and entry_of_file(store, want.name) == want
        answers: list[bool] = [True] * self._world
        dist.all_gather_object(answers, fine)
        return all(answers)

    def _load(self, checkpoint: Checkpoint, store: Storage) -> None:
        self._require_same_model(checkpoint, store)
        names = [f.name for f in checkpoint.files]
        if checkpoint.layout != self._layout:
            if self._rank == 0:
                self._say(f"{checkpoint.tag} was taken with {checkpoint.layout}; it is read for {self._layout}")
        elif not holds_everything(self._engine):
            names = [name for name in names if name.rsplit("/", 1)[-1].startswith(file_prefix(self._rank))]
        stored = StoredState(store, names)
        for piece in pieces(self._engine, self._model):
            stored.fill(piece)
        finish_loading(self._engine, stored.taken)

    def _require_same_model(self, checkpoint: Checkpoint, store: Storage) -> None:
        """Norm order, rotary base and the like change no shape, and yet the weights mean nothing without them."""
        theirs, ours = checkpoint.model, self._describe
        differing = [f"{k} was {theirs[k]!r} and is {ours[k]!r}" for k in ours if k in theirs and theirs[k] != ours[k]]
        if differing:
            raise StoreError(
                f"{store.url(checkpoint.manifest)}: it is of another model: {'; '.join(differing)}. Set `model` as it "
                "was, or begin a training of its own."
            )

    def _remove(self, checkpoint: Checkpoint) -> None:
        """The manifest first: a removal that is killed leaves a folder that does not count."""
        self._store.delete(checkpoint.manifest)
        for f in checkpoint.files:
            self._store.delete(f.name)
        self._remove_folder(checkpoint.tag)

    def _sweep(self) -> None:
        self._store.sweep(FOLDER)
        committed = {name.removesuffix(".json") for name in self._store.list(FOLDER, ".json")}
        for found in list(self._store.find(FOLDER)):
            parts = found.name.split("/")
            if len(parts) > 2 and parts[1] not in committed:
                self._store.delete(found.name)
        if self._store.local and self._store.path(FOLDER).is_dir():
            for folder in self._store.path(FOLDER).iterdir():
                if folder.is_dir() and folder.name not in committed:
                    self._remove_folder(folder.name)

    def _remove_folder(self, tag: str) -> None:
        if self._store.local:
            shutil.rmtree(self._store.path(f"{FOLDER}/{tag}"), ignore_errors=True)


def file_prefix(rank: int) -> str:
    """How the names of a rank's files begin."""
    return f"rank-{rank:05d}-"
