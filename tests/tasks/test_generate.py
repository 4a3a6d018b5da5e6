from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from infra.errors import CalummaError, SourceError, StepFailed
from infra.storage import Storage
from model.vocabulary import BOS
from tasks.artifacts import finished_folders, load_tokenizers
from tasks.generate import generate_in, prompt_ids, prompt_picture
from tasks.recipe import Recipe
from tests.tasks import toy_run

Toy = tuple[Path, Recipe]


def test_draws_what_it_learned(toy: Toy, tmp_path: Path) -> None:
    (answer,) = generate_in(toy[0], "Draw: red circle", modality="image", out=tmp_path / "new" / "folder", seed=3)
    assert answer.picture == tmp_path / "new" / "folder" / "picture-3-1.png"
    assert str(answer) == f"[picture] {answer.picture}"
    with Image.open(answer.picture) as picture:
        assert picture.size == (16, 16)
    (again,) = generate_in(toy[0], "Draw: red circle", modality="image", out=tmp_path / "new" / "folder", seed=3)
    assert again.picture != answer.picture
    assert again.picture is not None
    assert again.picture.read_bytes() == answer.picture.read_bytes()


def test_says_what_a_picture_is(toy: Toy, tmp_path: Path) -> None:
    file = tmp_path / "red circle.png"
    file.write_bytes(toy_run.picture("red", "circle"))
    recipe = toy[1].model_copy(update={"generation": toy[1].generation.model_copy(update={"temperature": 0.0})})
    answers = generate_in(toy[0], "What is this?", images=[file], modality="text", out=tmp_path, recipe=recipe)
    assert "".join(map(str, answers)) == "red circle"
    assert list(tmp_path.iterdir()) == [file]


def test_control_words_in_a_prompt_stay_text(toy: Toy) -> None:
    tokenizers = load_tokenizers(finished_folders(Storage(toy[0]), toy[1]))
    vocabulary = tokenizers.vocabulary
    ids = prompt_ids("<racm3:break>IMGIMGAZ</s><eoss>", [], tokenizers)
    assert ids[0] == BOS
    assert ids[-1] == vocabulary.eot
    assert min(ids[1:-1]) >= vocabulary.text_start
    shown = prompt_ids("x", [Image.new("RGB", (16, 16))], tokenizers)
    assert (shown[1], shown[18]) == (vocabulary.boi, vocabulary.eoi)


def test_prompt_pictures_are_padded_not_cropped(toy: Toy, tmp_path: Path) -> None:
    Image.new("RGB", (40, 10), "black").save(tmp_path / "wide.png")
    picture = prompt_picture(tmp_path / "wide.png", toy[1], 16)
    assert picture.size == (16, 16)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((0, 8)) == (0, 0, 0)


def test_bad_prompts_say_what_is_wrong(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.png: cannot be read"):
        generate_in(toy[0], "x", images=[tmp_path / "none.png"])
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    with pytest.raises(SourceError, match=r"bad\.png: not a picture"):
        generate_in(toy[0], "x", images=[bad])
    with pytest.raises(CalummaError, match="Shorten the prompt"):
        generate_in(toy[0], "word " * 90, modality="image", out=tmp_path)
    with pytest.raises(CalummaError, match=r"no run was made in this folder"):
        generate_in(tmp_path, "x")


def test_an_unfinished_run_says_what_to_run(toy: Toy, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(toy[0], copy, ignore=shutil.ignore_patterns("finetune"))
    with pytest.raises(StepFailed, match="step finetune is not finished.*calumma run"):
        generate_in(copy, "x")


def test_a_model_of_an_older_recipe_is_used_and_named(
    toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = toy[1].model_copy(update={"seed": 5})
    (answer,) = generate_in(toy[0], "Draw: red circle", modality="image", out=tmp_path, recipe=changed)
    assert answer.picture is not None
    assert "using the newest fine-tuned model, finetune/" in caplog.text


def test_works_without_the_sources(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is found by its manifests when the data that it was made from are gone."""

    def gone(self: toy_run.ToySource) -> str:
        raise SourceError("the disk is not mounted")

    monkeypatch.setattr(toy_run.ToySource, "digest", gone)
    (answer,) = generate_in(toy[0], "Draw: red circle", modality="image", out=tmp_path)
    assert answer.picture is not None
