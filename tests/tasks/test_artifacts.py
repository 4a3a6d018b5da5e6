from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from infra.errors import StepFailed
from infra.storage import Storage
from tasks.artifacts import Tokenizers, finished_folders, load_tokenizers, load_weights, made_from
from tasks.context import StepContext
from tasks.recipe import Recipe
from tasks.steps import NAMES

Toy = tuple[Path, Recipe]


@pytest.fixture
def tokenizers(toy: Toy) -> Tokenizers:
    return load_tokenizers(finished_folders(Storage(toy[0]), toy[1]))


def test_a_step_is_traced_to_all_that_it_was_made_from(toy: Toy) -> None:
    prints = StepContext(toy[1], str(toy[0]), "finetune").fingerprints
    found = made_from(Storage(toy[0]), "finetune", prints["finetune"])
    assert found == {step: prints[step] for step in NAMES[: NAMES.index("finetune") + 1]}


def test_pictures_and_codes_go_both_ways(tokenizers: Tokenizers) -> None:
    assert tokenizers.codes_per_image == 16
    codes = [[i % 32] * 16 for i in range(70)]  # more than one batch
    pictures = tokenizers.pictures(codes)
    assert len(pictures) == 70
    assert {p.size for p in pictures} == {(16, 16)}
    assert tokenizers.pictures([codes[3]])[0].tobytes() == pictures[3].tobytes()
    assert [len(c) for c in tokenizers.codes([Image.new("RGB", (16, 16), c) for c in ("red", "blue")])] == [16, 16]
    assert tokenizers.pictures([]) == []
    assert tokenizers.codes([]) == []


def test_weights_of_either_training(toy: Toy) -> None:
    store = finished_folders(Storage(toy[0]), toy[1])
    before, after = load_weights(store, "pretrain"), load_weights(store, "finetune")
    assert not before.training
    assert before.vocabulary_size == toy[1].vocabulary.size
    assert not before.embedding.weight.equal(after.embedding.weight)


def test_a_step_that_is_not_finished_says_how_to_finish_it(toy: Toy, tmp_path: Path) -> None:
    store = finished_folders(Storage(tmp_path), toy[1])
    with pytest.raises(StepFailed, match=r"step pretrain is not finished.*calumma run .*recipe\.yaml"):
        store("pretrain")
