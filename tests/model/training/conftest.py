"""A small mix folder made through the real store, and real ranks without Ray."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.storage import Storage
from infra.store.plan import PLAN, PackedStore, Plan
from infra.store.sequences import INFO, SequencesInfo, encode_file, stem
from model.vocabulary import BOS, EOS, PAD, Vocabulary
from tests.model.training import rank

VOCABULARY = Vocabulary(image_codes=8, text_start=16, size=300)
LENGTH = 24
CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ("tests.model.training.rank", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer")


def write_folder(store: Storage, kind: str, name: str, count: int, seed: int) -> PackedStore:
    """Sequences of two documents each: a picture of one repeated code with a text that counts on from it."""
    rng = np.random.default_rng(seed)
    tokens = np.full((count, LENGTH), PAD, np.uint16)
    starts = np.zeros((count, LENGTH), np.bool_)
    loss = np.zeros((count, LENGTH), np.bool_)
    for i in range(count):
        at = 0
        for _ in range(2):
            code = int(rng.integers(8))
            words = [VOCABULARY.text_start + code * 3 + j for j in range(3)]
            ids = [BOS, VOCABULARY.boi, *[4 + code] * 4, VOCABULARY.eoi, *words, EOS]
            tokens[i, at : at + len(ids)], starts[i, at] = ids, True
            loss[i, at + 7 : at + len(ids)] = True
            at += len(ids)
        starts[i, at] = True
    info = SequencesInfo(sequences=count, length=LENGTH, file_sequences=64, loss=kind == "finetune")
    folder = f"{kind}/{name}"
    for file in range(info.files):
        rows = slice(file * 64, file * 64 + info.rows(file))
        for suffix, data in encode_file(tokens[rows], starts[rows], loss[rows] if info.loss else None).items():
            store.put(f"{folder}/{stem(file)}.{suffix}", data)
    store.put(f"{folder}/{INFO}", info.dump())
    return PackedStore.model_validate(
        {"name": name, "kind": kind, "folder": folder, "sequences": count, "slices": [count], "documents": 2 * count}
        | {"split_documents": 0, "cut_pictures": 0, "tokens": {}, "padding": 2 * count, "fill": 0.9, "image_share": 0.5}
    )


@pytest.fixture(scope="session")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    store = Storage(tmp_path_factory.mktemp("mix"))
    plan = Plan(
        fingerprint="plan-a",
        seed=3,
        sequence_length=LENGTH,
        vocabulary=VOCABULARY.model_dump(),
        stages=[write_folder(store, "pretrain", "one", 42, 1), write_folder(store, "pretrain", "two", 14, 2)],
        finetune=[write_folder(store, "finetune", "epoch-0", 16, 3)],
        held_out={"pictures": write_folder(store, "held-out", "pictures", 5, 4)},
    )
    store.put(PLAN, plan.dump())
    return store


Ranks = Callable[..., dict[int, Any]]


@pytest.fixture
def ranks(tmp_path: Path, ranks_of: Callable[[Path], Ranks]) -> Ranks:
    return ranks_of(tmp_path)


@pytest.fixture(scope="session")
def ranks_of(mix: Storage) -> Callable[[Path], Ranks]:
    """Trains on ``world`` processes, see ``rank.py``; what each rank ended with. A rank that died is missing.

    With ``runs``, a list of further options, each rank ends with a list. Every call has new processes; they are forked
    by one that has imported what they need, which takes seconds.
    """
    CONTEXT.set_forkserver_preload(list(PRELOADED))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.setenv("DS_ACCELERATOR", "cpu")
        forkserver.ensure_running()
    return lambda folder: lambda world=2, **options: run_ranks(folder, world, {"mix": mix.root, **options})


def run_ranks(parent: Path, world: int, options: dict[str, Any]) -> dict[int, Any]:
    folder = parent / f"ranks-{len(list(parent.iterdir()))}"
    folder.mkdir()
    processes = [CONTEXT.Process(target=rank.main, args=(folder, options, r, world)) for r in range(world)]
    for p in processes:
        p.start()
    first, *others = processes
    first.join()
    for p in others:
        if first.exitcode:
            p.kill()
        p.join()
    if first.exitcode not in (0, -signal.SIGKILL):
        print((folder / "0.log").read_text()[-3000:])
    found = {r: folder / f"{r}.pickle" for r in range(world)}
    return {r: pickle.loads(path.read_bytes()) for r, path in found.items() if path.exists()}
