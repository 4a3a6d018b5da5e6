from __future__ import annotations

import pytest

from infra.storage import Storage
from model.data.account import Account
from model.data.loader import SequenceLoader
from model.data.stages import Run
from model.data.steps import BatchSizes
from model.vocabulary import FIRST_IMAGE_CODE, PAD


@pytest.mark.parametrize("run", ["pretrain", "finetune"])
@pytest.mark.parametrize("epochs", [None, 1, 5])
@pytest.mark.parametrize("batch", [1, 4, 30])
def test_accounts_equal_what_the_loader_delivers(mix_store: Storage, run: Run, epochs: int | None, batch: int) -> None:
    account = Account(mix_store, run, epochs)
    loader = SequenceLoader(mix_store, run, batch, epochs=epochs)
    assert len(account.steps(batch)) == loader.steps
    for step, found in enumerate(loader):
        counts = account.step(step, batch)
        tokens = found["tokens"]
        image = (tokens >= FIRST_IMAGE_CODE) & (tokens <= loader.vocabulary.boi)
        assert sum(c["image"] for c in counts.values()) == int(image.sum())
        assert sum(c["text"] for c in counts.values()) == int(((tokens != PAD) & ~image).sum())
        assert set(counts) <= {"a", "b"}


def test_positions_may_span_stages_and_sum_up(mix_store: Storage) -> None:
    account = Account(mix_store, "pretrain")
    whole = account.positions(range(len(account.order)))
    steps = [account.step(n, 8) for n in range(len(account.steps(8)))]
    for source, counts in whole.items():
        for modality, n in counts.items():
            assert n == sum(s.get(source, {}).get(modality, 0) for s in steps)


def test_accounts_follow_a_growing_batch_and_skipped_intervals(mix_store: Storage) -> None:
    sizes = BatchSizes.of(7, [(4, 2), (10, 3)])
    account, loader = Account(mix_store, "pretrain"), SequenceLoader(mix_store, "pretrain", sizes)
    loader.skip(5, 8)
    loader.skip(22, 27)
    for step, found in enumerate(loader):
        counts = account.step(step, sizes, loader.skipped)
        assert sum(c["image"] for c in counts.values()) == int(found["modality"].sum())
        assert sum(map(sum, (c.values() for c in counts.values()))) == int((found["documents"] >= 0).sum())
    assert step + 1 == len(account.steps(sizes, loader.skipped)) == loader.steps
