"""A small mix folder, made through the real store: two stages of two slices, two epochs, held-out sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from infra.storage import Storage
from infra.store.plan import PLAN, PackedStore, Plan
from infra.store.sequences import INFO, SPANS, SequencesInfo, encode_file, stem
from infra.store.tables import write_table
from model.vocabulary import BOS, EOS, PAD, Vocabulary

VOCABULARY = Vocabulary(image_codes=16, text_start=32, size=512)
LENGTH = 24
PICTURE = [VOCABULARY.boi, 5, 9, 7, 4, VOCABULARY.eoi]


def _documents(rng: np.random.Generator) -> tuple[list[list[int]], list[int]]:
    """Documents that fill a sequence but for a few positions, and the image tokens of each."""
    found: list[list[int]] = []
    images: list[int] = []
    while (room := LENGTH - sum(map(len, found))) >= 10:
        picture = PICTURE if rng.random() < 0.5 else []
        words = rng.integers(VOCABULARY.text_start, VOCABULARY.size, int(rng.integers(1, room - 8))).tolist()
        found.append([BOS, *picture, *words, EOS])
        images.append(len(picture))
    return found, images


def write_folder(store: Storage, kind: str, name: str, slices: list[int], seed: int) -> PackedStore:
    folder, count, file_sequences = f"parts/{kind}/{name}", sum(slices), 20
    info = SequencesInfo(sequences=count, length=LENGTH, file_sequences=file_sequences, loss=kind == "finetune")
    rng = np.random.default_rng(seed)
    tokens = np.full((count, LENGTH), PAD, np.uint16)
    starts = np.zeros((count, LENGTH), np.bool_)
    loss = rng.random((count, LENGTH)) < 0.5
    spans: list[dict[str, object]] = []
    for i in range(count):
        at = 0
        documents, images = _documents(rng)
        for number, (ids, image) in enumerate(zip(documents, images, strict=True)):
            tokens[i, at : at + len(ids)] = ids
            starts[i, at] = True
            span = {"sequence": i, "offset": at, "length": len(ids), "source": "ab"[number % 2], "part": "p", "row": 0}
            spans.append({**span, "occurrence": 0, "first_token": 0, "image_tokens": image})
            at += len(ids)
        if at < LENGTH:
            starts[i, at] = True
    for file in range(info.files):
        first, last = file * file_sequences, file * file_sequences + info.rows(file)
        bits = loss[first:last] if info.loss else None
        files = encode_file(tokens[first:last], starts[first:last], bits)
        files["parquet"] = write_table([s for s in spans if first <= int(str(s["sequence"])) < last], SPANS)
        for suffix, data in files.items():
            store.put(f"{folder}/{stem(file)}.{suffix}", data)
    store.put(f"{folder}/{INFO}", info.dump())
    padding = int((tokens == PAD).sum())
    return PackedStore.model_validate(
        {"name": name, "kind": kind, "folder": folder, "sequences": count, "slices": slices, "documents": len(spans)}
        | {"split_documents": 0, "cut_pictures": 0, "tokens": {}, "padding": padding, "fill": 1.0, "image_share": 0.5}
    )


def write_plan(store: Storage, fingerprint: str = "plan-a", seed: int = 5) -> Plan:
    plan = Plan(
        fingerprint=fingerprint,
        seed=seed,
        sequence_length=LENGTH,
        vocabulary=VOCABULARY.model_dump(),
        stages=[
            write_folder(store, "pretrain", "stage-1", [13, 12], 1),
            write_folder(store, "pretrain", "stage-2", [7, 4], 2),
        ],
        finetune=[
            write_folder(store, "finetune", "epoch-0", [9], 3),
            write_folder(store, "finetune", "epoch-1", [10], 4),
        ],
        held_out={"a": write_folder(store, "held-out", "a", [5], 6)},
    )
    store.put(PLAN, plan.dump())
    return plan


@dataclass(frozen=True)
class Fakes:
    """What tests need to know of the folder, and how to make another one."""

    vocabulary: Vocabulary = VOCABULARY
    length: int = LENGTH
    picture: tuple[int, ...] = tuple(PICTURE)
    write_plan: Callable[..., Plan] = write_plan


@pytest.fixture(scope="session")
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture(scope="session")
def mix_store(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    store = Storage(Path(tmp_path_factory.mktemp("mix")))
    write_plan(store)
    return store
