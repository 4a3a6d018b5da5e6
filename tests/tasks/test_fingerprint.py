from __future__ import annotations

from pathlib import Path

import pytest

from tasks.fingerprint import fingerprints, folder_of
from tasks.recipe import Recipe, load_recipe
from tasks.status import differences
from tasks.steps import NAMES, STEPS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("hello")
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "r.yaml").write_text(
        "name: small\nsources:\n"
        "  - {name: docs, type: text, kind: text, path: docs}\n"
        "  - {name: chat, type: messages, kind: messages, path: chat.jsonl}\n"
        "mix: {tokens: 1000, stages: [{name: one, share: 1.0, weights: {docs: 1}}]}\n"
        "finetune_mix: {sources: [chat]}\n"
    )
    return tmp_path


def changed(before: Recipe, after: Recipe) -> set[str]:
    a, b = fingerprints(before), fingerprints(after)
    return {step for step in NAMES if a[step] != b[step]}


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        ("resources.train_workers=7", set()),
        ("resources.precision=bf16", set()),
        ("watch.every=3", set()),
        ("name=other", set()),
        ("generation.temperature=0.5", {"evaluate", "report"}),
        ("finetune.epochs=9", {"finetune", "evaluate", "export", "report"}),
        ("mix.tokens=2000", {"mix", "pretrain", "finetune", "evaluate", "export", "report"}),
        ("image_tokenizer.channels=64", set(NAMES) - {"scan", "select", "text-tokenizer"}),
        ("seed=1", set(NAMES) - {"x"}),
    ],
)
def test_a_change_moves_exactly_what_depends_on_it(folder: Path, setting: str, steps: set[str]) -> None:
    path = folder / "r.yaml"
    assert changed(load_recipe(path), load_recipe(path, [setting])) == steps


def test_changed_content_moves_everything(folder: Path) -> None:
    recipe = load_recipe(folder / "r.yaml")
    before = fingerprints(recipe)
    (folder / "docs" / "a.txt").write_text("hello, world")
    after = fingerprints(recipe)
    assert all(before[s] != after[s] for s in NAMES)


def test_a_moved_folder_moves_nothing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = fingerprints(load_recipe(folder / "r.yaml"))
    moved = tmp_path_factory.mktemp("moved") / "here"
    folder.rename(moved)
    assert fingerprints(load_recipe(moved / "r.yaml")) == before


def test_steps_read_only_earlier_steps() -> None:
    for i, step in enumerate(STEPS):
        assert set(step.inputs) <= set(NAMES[:i])
        assert set(step.sections) <= set(Recipe.model_fields)


def test_folders_and_differences() -> None:
    assert folder_of("encode", "0123456789abcdef") == "encode/0123456789ab"
    a = {"mix": {"tokens": 1, "stages": [1]}, "inputs": {"tokenize": "x"}}
    b = {"mix": {"tokens": 2, "stages": [1]}, "inputs": {"tokenize": "y"}, "seed": 1}
    assert differences(a, b) == ("step tokenize", "mix.tokens", "seed")
