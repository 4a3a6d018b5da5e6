"""What ``benchmarks.loader`` reads: the same packed sequences in every contender's format, and a full-size store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.peers import streaming
from infra.storage import Storage
from infra.store.plan import PLAN, PackedStore, Plan
from infra.store.sequences import BLOCK, INFO, SequencesInfo, encode_file, stem
from model.vocabulary import BOS, EOS, PAD, Vocabulary
from tasks.exchange.megatron import MegatronWriter

LENGTH = 4096
PICTURE = 1026
V = Vocabulary()
FULL = {"stage-1": 1717, "stage-2": 429}
"""Slices of 2^20 sequences: 2.25 billion, the paper's run."""


def sequence(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ids and starts of a packed sequence: pairs, texts of many lengths, a few positions of padding now and then."""
    tokens, starts, at = np.full(LENGTH, PAD, np.uint16), np.zeros(LENGTH, np.bool_), 0
    while (room := LENGTH - at) > 8:
        words = min(room - 2, int(rng.lognormal(5.5, 1.2)) + 2)
        picture = [V.boi, *rng.integers(4, V.eoi, PICTURE - 2), V.eoi] if rng.random() < 0.4 else []
        picture = picture if len(picture) + 12 < room else []
        words = min(words, room - 2 - len(picture))
        ids = [BOS, *picture, *rng.integers(V.text_start, V.size, words), EOS]
        tokens[at : at + len(ids)], starts[at] = ids, True
        at += len(ids)
    if at < LENGTH:
        starts[at] = True
    return tokens, starts


def packed(name: str, slices: list[int]) -> PackedStore:
    """A folder of the plan, its accounts left empty."""
    return PackedStore.model_validate(
        {"name": name, "kind": "pretrain", "folder": name, "sequences": sum(slices), "slices": slices, "documents": 1}
        | {"split_documents": 0, "cut_pictures": 0, "tokens": {}, "padding": 0, "fill": 1.0, "image_share": 0.5}
    )


def plan_of(stages: dict[str, list[int]]) -> Plan:
    """A plan of stages by name, each with its slices."""
    return Plan(
        fingerprint="0" * 32,
        seed=1,
        sequence_length=LENGTH,
        vocabulary=V.model_dump(),
        stages=[packed(name, slices) for name, slices in stages.items()],
        finetune=[],
        held_out={},
    )


def write_all(folder: Path, count: int) -> None:
    """The same sequences in every contender's format."""
    from datasets import Dataset, Features, Sequence, Value, disable_progress_bars

    disable_progress_bars()

    rng = np.random.default_rng(0)
    rows = [sequence(rng) for _ in range(min(count, 512))]
    order = rng.permutation(np.arange(count) % len(rows))
    tokens = np.stack([rows[i][0] for i in order])
    starts = np.stack([rows[i][1] for i in order])
    tokens[:, 1] = V.text_start + np.arange(count) % (V.size - V.text_start)  # no two sequences are the same
    store = Storage(folder / "calumma")
    for suffix, data in encode_file(tokens, starts).items():
        store.put(f"stage-1/{stem(0)}.{suffix}", data)
    store.put(f"stage-1/{INFO}", SequencesInfo(sequences=count, length=LENGTH, file_sequences=count).dump())
    store.put(PLAN, plan_of({"stage-1": [count]}).dump())
    bits = np.packbits(starts, axis=1, bitorder="little")
    columns = {"tokens": f"ndarray:uint16:{LENGTH}", "starts": f"ndarray:uint8:{LENGTH // 8}"}
    with streaming().MDSWriter(out=str(folder / "mds"), columns=columns) as out:
        for row in range(count):
            out.write({"tokens": tokens[row], "starts": bits[row]})
    writer = MegatronWriter(Storage(folder / "megatron"), file_bytes=1 << 40)
    for row in range(count):
        writer.write(tokens[row])
    writer.finish()
    features = Features({"tokens": Sequence(Value("uint16"), LENGTH), "starts": Sequence(Value("uint8"), LENGTH // 8)})
    Dataset.from_dict({"tokens": list(tokens), "starts": list(bits)}, features=features).save_to_disk(
        str(folder / "arrow")
    )


def write_full(folder: Path) -> None:
    """A store of 2.25 billion sequences: sparse files, of which every name leads to one of few."""
    store, count = Storage(folder), 32_768
    starts = np.zeros((BLOCK, LENGTH), np.bool_)
    starts[:, 0] = True
    block = encode_file(np.zeros((BLOCK, LENGTH), np.uint16), starts)
    blocks = count // BLOCK
    (folder / "one").mkdir(parents=True)
    with open(folder / "one" / "u16", "wb") as f:
        f.truncate(count * LENGTH * 2)
    (folder / "one" / "starts").write_bytes(block["starts"] * blocks)
    (folder / "one" / "sums").write_bytes(block["sums"] * blocks)
    for name, slices in FULL.items():
        (folder / name).mkdir()
        for file in range(slices * 32):
            for suffix in ("u16", "starts", "sums"):
                (folder / name / f"{stem(file)}.{suffix}").symlink_to(f"../one/{suffix}")
        store.put(f"{name}/{INFO}", SequencesInfo(sequences=slices << 20, length=LENGTH, file_sequences=count).dump())
    store.put(PLAN, plan_of({name: [1 << 20] * slices for name, slices in FULL.items()}).dump())
