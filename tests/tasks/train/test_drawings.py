"""What is drawn while the transformer trains, and the sheets that are kept of it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import RecipeError
from infra.storage import Storage
from model.training.watch.config import DrawingsConfig, WatchConfig
from model.vocabulary import BOS
from tasks.artifacts import load_tokenizers
from tasks.context import StepContext
from tasks.progress import Progress, read_progress
from tasks.questions import read_pairs
from tasks.recipe import Recipe, parse_recipe
from tasks.train.drawings import PROMPTS, TILE, Asked, Sheets, asked_for, course, sheet, sheet_files, start_drawing
from tests.tasks import toy_run

Toy = tuple[Path, Recipe]


def context(toy: Toy, step: str = "pretrain", **drawings: int) -> StepContext:
    watch = WatchConfig(drawings=DrawingsConfig(**({"every": 40, "pictures": 3} | drawings)))
    return StepContext(toy[1].model_copy(update={"watch": watch}), str(toy[0]), step, "test")


@pytest.fixture
def asked(toy: Toy) -> Asked:
    found = asked_for(context(toy), "pretrain")
    assert found is not None
    return found


def random_codes(asked: Asked, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(32, size=(len(asked.prompts), 16))


def test_captions_are_of_held_out_pairs_and_put_as_the_training_puts_them(toy: Toy, asked: Asked) -> None:
    tokenizers = load_tokenizers(context(toy).store)
    held_out = {pair.name: pair for pair, out in read_pairs(context(toy), "shapes") if out}
    assert len(asked.prompts) == 3
    for prompt in asked.prompts:
        assert prompt.codes == held_out[prompt.words].codes
        assert prompt.ids[0] == BOS
        assert prompt.ids[-1] == tokenizers.vocabulary.boi
        assert tokenizers.text.decode(list(prompt.ids[1:-1])) == prompt.words
    chat = asked_for(context(toy, "finetune"), "finetune")
    assert chat is not None
    for prompt in chat.prompts:
        assert prompt.ids[-2:] == (tokenizers.vocabulary.eot, tokenizers.vocabulary.boi)
        assert tokenizers.text.decode(list(prompt.ids[1:-2])) == f"Draw: {prompt.words}"
    everything = asked_for(context(toy, pictures=12), "pretrain")
    assert everything is not None
    assert sorted(p.words for p in everything.prompts) == sorted(held_out)  # there are no more
    assert asked.prompts == everything.prompts[:3]  # and the same ones come first


def test_nothing_is_drawn_where_nothing_is_asked_for(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_for(context(toy, every=0), "pretrain") is None
    assert start_drawing(None, Storage(toy[0]), Progress(Storage(toy[0]), "none")) is None
    monkeypatch.setattr("tasks.questions.held_out_pairs", lambda *_: [])
    assert asked_for(context(toy), "pretrain") is None


def test_an_encoder_alone_cannot_show_what_is_drawn(toy: Toy, tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    shutil.copytree(toy[0], workdir)
    copied = (workdir, toy[1])
    manifest = context(copied).store("image-tokenizer").path("manifest.json")
    text = manifest.read_text()
    assert '"facts": {' in text
    manifest.write_text(text.replace('"facts": {', '"facts": {"decoder": false, ', 1))
    with pytest.raises(RecipeError, match=r"watch\.drawings\.every is 40, .*encoder only.*set it to 0"):
        asked_for(context(copied), "pretrain")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"resources": {"zero_stage": 3}}, r"watch\.drawings\.every is 40 and resources\.zero_stage is 3.*set"),
        ({"scan": {"held_out": 0.0}}, r"scan\.held_out is 0"),
        (
            {"sources": [{**s, "kind": s["kind"].replace("pairs", "interleaved")} for s in toy_run.RECIPE["sources"]]},
            r"no source is of kind pairs",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_the_recipe(changed: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_recipe({**toy_run.RECIPE, "watch": {"drawings": {"every": 40}}, **changed})


def test_sheets_are_kept_in_bounded_number_and_none_of_later_steps(asked: Asked, tmp_path: Path) -> None:
    store, workdir = Storage(tmp_path / "step"), Storage(tmp_path)
    progress = Progress(workdir, "job")
    show = Sheets(asked, store, progress)
    for step in range(40, 40 * 20, 40):
        array = show(step, random_codes(asked, step))
    kept = sheet_files(store)
    assert len(kept) <= 13
    assert kept[-1] == PROMPTS
    assert kept[-2] == "evaluations/step-000000760.png"
    progress.update(1, 2)
    state = read_progress(workdir, "job")
    assert state is not None
    assert state["picture"] == f"{asked.folder}/{kept[-2]}"
    data = store.get(kept[-2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), array)

    again = Sheets(asked, store, progress)  # a restarted worker, whose training goes on from an earlier step
    again(560, random_codes(asked, 560))
    assert max(kept_steps(store)) == 560
    for step in range(600, 40 * 20, 40):
        again(step, random_codes(asked, step))
    assert sheet_files(store) == kept
    assert store.get(kept[-2]) == data


def kept_steps(store: Storage) -> list[int]:
    return [int(name[-13:-4]) for name in sheet_files(store) if name != PROMPTS]


def test_sheets_of_other_captions_make_room(asked: Asked, toy: Toy, tmp_path: Path) -> None:
    store, fewer = Storage(tmp_path), asked_for(context(toy, pictures=1), "pretrain")
    assert fewer is not None
    Sheets(asked, store, Progress(store, "job"))(40, random_codes(asked))
    Sheets(fewer, store, Progress(store, "job"))(80, random_codes(fewer))
    assert kept_steps(store) == [80]


def test_a_course_is_cut_from_the_sheets(asked: Asked, tmp_path: Path) -> None:
    store = Storage(tmp_path)
    assert course(store, 4) == ([], [])
    show = Sheets(asked, store, Progress(store, "job"))
    first = show(40, random_codes(asked, 1))
    assert course(store, 4)[0] == [40]
    for step in range(80, 440, 40):
        show(step, random_codes(asked, step))
    steps, captions = course(store, 4)
    assert len(steps) == 4
    assert (steps[0], steps[-1]) == (40, 400)
    assert [c.words for c in captions] == [p.words for p in asked.prompts]
    assert np.array_equal(np.asarray(captions[2].drawn[0]), first[2:130, 266:394])
    assert np.array_equal(np.asarray(captions[2].original), first[134:262, 266:394])
    assert all(len(c.drawn) == 4 for c in captions)


def test_words_on_a_sheet_stay_under_their_picture() -> None:
    white = Image.new("RGB", (64, 64), "white")
    picture = sheet(["a caption of many words that goes on and on " * 5, "不" * 80], [white] * 2, [white] * 2, 400)
    assert picture.width == 5 * TILE
    ink = np.asarray(picture.crop((0, 2 * TILE, picture.width, 2 * TILE + 3 * 15 + 3))).min(axis=(0, 2)) < 128
    assert ink[:TILE].any()
    assert not ink[TILE - 3 : TILE].any()
    assert not ink[2 * TILE - 3 :].any()
