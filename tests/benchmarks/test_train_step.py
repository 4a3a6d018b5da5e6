"""The benchmark of training steps at toy size: the sides agree, useful tokens are the same, the figures are there."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import train_step
from benchmarks.lengths import V
from benchmarks.trainers import Ids, Ours, Peer, labels_of, mean_nll, optimizer_of, packed, padded, step
from model.transformer.loss import IGNORE
from model.vocabulary import BOS, EOS, PAD

SMALL = ["--dim", "64", "--layers", "1", "--length", "64", "--rows", "2", "--dense", "1", "16"]
SMALL += ["--vocabulary", "512", "--rounds", "2", "--threads", "1", "--json"]
FEW = V.text_start + 512
SMALL += ["--packed-vocabulary", str(FEW)]


def documents(count: int = 60) -> list[Ids]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 60, count)
    return [np.concatenate([[BOS], rng.integers(V.text_start, FEW, n), [EOS]]).astype(np.uint16) for n in lengths]


def test_it_runs_and_ends_with_its_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_step, "real_pieces", lambda length: documents())
    monkeypatch.setattr(train_step, "use_bf16", lambda resources: False)
    train_step.main(SMALL)
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert figures["useful_tokens_ratio"] > 0
    assert figures["useful_tokens_ratio_sorted"] > 0
    assert figures["dense_ratio"] > 0
    assert figures["useful_share_16"] < figures["useful_share_2"] < 1
    assert figures["padded_useful_share"] < figures["ours_useful_share"] <= 1
    assert figures["batches"] == 2
    assert "bf16: NOT measured" in out


def test_both_sides_train_on_the_same_labels_alike() -> None:
    ours, peer = train_step.contenders(64, 2, FEW, torch.float32)
    rows = train_step.packed_rows(documents(), 64, 3, 0)
    flat = [ids for row in rows for ids in row]
    mine, theirs = [packed(rows, 64, V)], [padded(some) for some in train_step.groups(flat, 2)]
    assert labels_of(mine) == labels_of(theirs) == sum(len(ids) - 1 for ids in flat)
    optimizers = optimizer_of(ours), optimizer_of(peer)
    for _ in range(3):
        assert mean_nll(ours, mine) == pytest.approx(mean_nll(peer, theirs), abs=1e-3)
        step(ours, optimizers[0], mine)
        step(peer, optimizers[1], theirs)
    assert mean_nll(ours, mine) < 0.999 * mean_nll(train_step.contenders(64, 2, FEW, torch.float32)[0], mine)


def test_every_round_has_a_batch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {"ours": [], "peer": []}
    monkeypatch.setattr(train_step, "step", lambda side, optimizer, micros: seen[side].append(micros))
    monkeypatch.setattr(train_step, "optimizer_of", lambda side: None)
    sides: Any = {name: (name, [1, 2, 3]) for name in seen}
    seconds = train_step.race(sides, 3)
    assert seen["ours"] == seen["peer"] == [3, 1, 2, 3]  # the first is not counted
    assert [len(taken) for taken in seconds.values()] == [3, 3]


def test_batches_of_a_draw_have_the_same_documents() -> None:
    draws = [train_step.draw_batches(documents(), 64, 3, number) for number in range(2)]
    for draw in draws:
        predicted = {
            name: sorted(i for micro in micros for i in micro["labels"][micro["labels"] != IGNORE].tolist())
            for name, micros in draw.items()
        }
        assert predicted["ours"] == predicted["padded"] == predicted["sorted"]
        assert all(len(micro["tokens"]) <= 3 for micros in draw.values() for micro in micros)
    assert not torch.equal(draws[0]["ours"][0]["tokens"], draws[1]["ours"][0]["tokens"])


def test_a_smaller_vocabulary_changes_texts_only() -> None:
    ids = np.array([BOS, V.boi, 4, 8195, V.eoi, V.text_start, V.text_start + 99, V.text_start + 100, EOS], np.uint16)
    folded = train_step.fold(ids, V.text_start + 100)
    assert folded.tolist() == [*ids[:7], V.text_start, EOS]
    assert folded.dtype == np.uint16


def test_sides_that_disagree_are_not_timed() -> None:
    ours, _ = train_step.contenders(64, 1, 256, torch.float32)
    other, _ = train_step.contenders(64, 2, 256, torch.float32)
    micro = {"tokens": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[2, 3, 4]])}
    with pytest.raises(SystemExit, match="disagree"):
        train_step.agree({"a": mean_nll(ours, [micro]), "b": mean_nll(other, [micro])}, torch.float32)


def test_padded_rows_predict_their_own_tokens_only() -> None:
    short, long = np.array([7, 8, 9], np.uint16), np.array([4, 5, 6, 7, 8], np.uint16)
    micro = padded([short, long])
    assert micro["tokens"].tolist() == [[7, 8, 9, PAD, PAD], [4, 5, 6, 7, 8]]
    assert micro["labels"].tolist() == [[8, 9, *[IGNORE] * 3], [5, 6, 7, 8, IGNORE]]
    assert micro["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert "attention_mask" not in padded([long])


def test_the_peer_has_our_weights_and_trains_no_picture_codec() -> None:
    ours, _ = train_step.contenders(64, 1, 256, torch.bfloat16)
    peer = Peer(ours.module)
    trained = {name for name, p in peer.module.named_parameters() if p.requires_grad}
    assert trained
    assert not any("vqmodel" in name for name in trained)
    assert peer.module.model.rotary_emb.inv_freq.dtype == torch.float32
    assert isinstance(ours, Ours)
