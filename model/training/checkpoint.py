"""Checkpoints: DeepSpeed's files plus our own state, real only once a manifest, written last, names them all.

Layout in a step's folder::

    checkpoints/step-00000100/…        DeepSpeed's files, one set a rank
    checkpoints/step-00000100.json     step, world size, loader and monitor state, every file's size and sha256

A killed run leaves at most a folder without a manifest, which is never read and is removed at the next start. Loading
checks every file against the manifest; where one is damaged, the checkpoint before it is used and that is said.

DeepSpeed writes to a local disk. Where the step's folder is on S3, every rank uploads what its node wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import entry_of_file
from infra.store.manifest import FileEntry

FOLDER = "checkpoints"
FORMAT = "calumma-checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint, as its manifest says."""

    step: int
    """Steps done when it was taken."""
    world: int
    state: dict[str, Any]
    """Loader, monitors: plain JSON."""
    files: list[FileEntry]

    @property
    def tag(self) -> str:
        return f"step-{self.step:08d}"

    @property
    def manifest(self) -> str:
        return f"{FOLDER}/{self.tag}.json"

    def dump(self) -> bytes:
        content = {
            "format": FORMAT,
            "version": 1,
            "step": self.step,
            "world": self.world,
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
        if raw["version"] > 1:
            raise StoreError(f"{where}: format version {raw['version']}; this Calumma reads up to 1. Use a newer one.")
        files = [FileEntry.model_validate(f) for f in raw["files"]]
        return Checkpoint(int(raw["step"]), int(raw["world"]), dict(raw["state"]), files)
    except (ValueError, KeyError, AttributeError) as e:
        raise StoreError(f"{where}: not a checkpoint's manifest ({e}). Delete it to use the one before.") from e


class Checkpoints:
    """Saves and loads a DeepSpeed engine's state. Every method is called by all ranks together."""

    def __init__(self, store: Storage, keep: int, say: Callable[[str], None] = print) -> None:
        self._store, self._keep, self._say = store, keep, say
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._node_rank = int(os.environ.get("LOCAL_RANK", self._rank))
        self._node_world = int(os.environ.get("LOCAL_WORLD_SIZE", self._world))
        if store.local:
            self._disk = store.path(FOLDER)
        else:
            root = hashlib.blake2b(store.root.encode(), digest_size=8).hexdigest()
            self._disk = Path(tempfile.gettempdir()) / f"calumma-checkpoints-{root}"
        if self._rank == 0:
            self._sweep()
        dist.barrier()

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> None:
        """Writes and commits a checkpoint, then removes all but the newest ``keep``."""
        tag = f"step-{step:08d}"
        if self._store.exists(f"{FOLDER}/{tag}.json"):
            return  # a run that was stopped right after a checkpoint starts from it again
        engine.save_checkpoint(str(self._disk), tag=tag, save_latest=False)
        dist.barrier()
        mine: list[FileEntry] = []
        for path in self._my_files(tag):
            name = f"{FOLDER}/{tag}/{path.name}"
            if not self._store.local:
                self._store.put(name, path.read_bytes())
            mine.append(entry_of_file(self._store, name))
        entries: list[list[FileEntry] | None] = [None] * self._world
        dist.all_gather_object(entries, mine)
        if self._rank == 0:
            files = sorted((f for part in entries if part for f in part), key=lambda f: f.name)
            checkpoint = Checkpoint(step, self._world, state, files)
            self._store.put_new(checkpoint.manifest, checkpoint.dump())
            for old in list_checkpoints(self._store)[self._keep :]:
                self._remove(old)
        if not self._store.local and self._node_rank == 0:
            shutil.rmtree(self._disk / tag, ignore_errors=True)
        dist.barrier()

    def load_latest(self, engine: Any) -> Checkpoint | None:
        """Loads the newest checkpoint whose files are whole; None where there is none.

        Raises:
            StoreError: it was taken with another number of workers.
        """
        for checkpoint in list_checkpoints(self._store):
            if checkpoint.world != self._world:
                raise StoreError(
                    f"{self._store.url(checkpoint.manifest)}: taken with {checkpoint.world} workers, and there are "
                    f"{self._world}. Set resources.train_workers to {checkpoint.world}, or delete the checkpoints to "
                    "start this training anew."
                )
            if self._whole(checkpoint):
                self._fetch(checkpoint)
                path, _ = engine.load_checkpoint(str(self._disk), tag=checkpoint.tag)
                if path is None:
                    raise StoreError(f"{self._store.url(checkpoint.manifest)}: DeepSpeed could not load it")
                return checkpoint
            if self._rank == 0:
                self._say(f"{checkpoint.tag} is damaged and is not used")
                self._remove(checkpoint)
            dist.barrier()
        return None

    def disk(self, checkpoint_step: int) -> Path:
        """The local folder that holds a checkpoint's files."""
        return self._disk / f"step-{checkpoint_step:08d}"

    def _my_files(self, tag: str) -> list[Path]:
        """This rank's share of the files to hash and upload: of those of its node, or of all on a shared disk."""
        files = sorted(p for p in (self._disk / tag).iterdir() if p.is_file())
        return files[self._rank :: self._world] if self._store.local else files[self._node_rank :: self._node_world]

    def _whole(self, checkpoint: Checkpoint) -> bool:
        """Whether every file is as its manifest says; each rank checks its share and all agree."""
        fine = True
        for want in checkpoint.files[self._rank :: self._world]:
            fine &= self._store.exists(want.name) and entry_of_file(self._store, want.name) == want
        answers: list[bool] = [True] * self._world
        dist.all_gather_object(answers, fine)
        return all(answers)

    def _fetch(self, checkpoint: Checkpoint) -> None:
        if self._store.local:
            return
        folder = self._disk / checkpoint.tag
        folder.mkdir(parents=True, exist_ok=True)
        for want in checkpoint.files[self._node_rank :: self._node_world]:
            (folder / Path(want.name).name).write_bytes(self._store.get(want.name))
        dist.barrier()

    def _remove(self, checkpoint: Checkpoint) -> None:
        """The manifest first: a removal that is killed leaves a folder that does not count."""
        self._store.delete(checkpoint.manifest)
        for f in checkpoint.files:
            self._store.delete(f.name)
        if self._store.local:
            shutil.rmtree(self._disk / checkpoint.tag, ignore_errors=True)

    def _sweep(self) -> None:
        self._store.sweep(FOLDER)
        if self._store.local and self._disk.is_dir():
            committed = {name.removesuffix(".json") for name in self._store.list(FOLDER, ".json")}
            for folder in self._disk.iterdir():
                if folder.is_dir() and folder.name not in committed:
                    shutil.rmtree(folder)
