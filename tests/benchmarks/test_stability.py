"""The stability study at toy size: it resumes, stops in time and tells divergence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import stability, stability_run
from benchmarks.stability_data import SCALES, Rows, frequency_loss, load_rows, picture_codes, rows_of, save_rows
from benchmarks.stability_plot import picture, style_of
from benchmarks.stability_run import Job, Variant, run
from benchmarks.trainers import Ids

TINY = SCALES["tiny"]


def made_up_rows(count: int = 80) -> Rows:
    rng = np.random.default_rng(0)
    rows: list[list[Ids]] = [
        [rng.integers(4, TINY.vocabulary.size, n).astype(np.uint16) for n in (rng.integers(2, 30), rng.integers(2, 30))]
        for _ in range(count)
    ]
    return Rows(rows[:20], rows[20:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_rows(tmp_path / "tiny-rows.npz", made_up_rows())
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    few = ["--rates", "0.01", "0.1", "--seeds", "0", "--variants", "none", "QK-norm + z-loss"]
    return ["--scale", "tiny", "--out", str(folder), "--processes", "1", "--json", *few, *more]


def test_it_runs_resumes_and_ends_with_its_figures(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stability.main(arguments(folder))
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["runs"], figures["left_out"]) == (4, 0)
    assert figures["max_attention_logit[QK-norm + z-loss]"] < figures["max_attention_logit[none]"]
    study = json.loads((folder / "stability.json").read_text())
    assert {r["variant"] for r in study["runs"]} == {"none", "QK-norm + z-loss"}
    with Image.open(folder / "stability.png") as shown:
        assert min(shown.size) > 500

    def no_more(*args: object) -> None:
        raise AssertionError("what is done must not be run again")

    monkeypatch.setattr(stability, "run", no_more)
    stability.main(arguments(folder))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == 4


def test_it_begins_nothing_after_its_minutes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="--minutes"):
        stability.main(arguments(folder, "--minutes", "0"))
    stability.main(arguments(folder, "--rates", "0.1"))
    stability.main(arguments(folder, "--minutes", "0"))
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["runs"], figures["left_out"]) == (2, 2)


def test_processes_side_by_side_find_the_same(folder: Path) -> None:
    job = Job("tiny", Variant(True, False, True), 0.1, 3)
    assert stability.work([job], folder, folder / "tiny-rows.npz", "cpu", 2, math.inf) == 0
    there = json.loads((folder / job.file).read_text())
    here = run(job, load_rows(folder / "tiny-rows.npz"))
    assert there["course"] == here["course"]
    assert there["held_out"] == here["held_out"]


def made_up_run(losses: list[float], end: float) -> dict[str, Any]:
    return {"course": [{"loss": loss} for loss in losses], "held_out": {"loss": end}}


def test_divergence_is_a_rise_or_no_number() -> None:
    assert not stability.diverged(made_up_run([7, 6, 5, 4.9, 5.1, 5.3], 5.9))
    assert stability.diverged(made_up_run([7, 6, 5, 4.9, 5.1, 5.5], 5))
    assert stability.diverged(made_up_run([7, 6, math.nan], 5.0))
    assert stability.diverged(made_up_run([7, 6, 5], math.inf))
    assert not stability.diverged(made_up_run([7, 7, 7], 7))  # has learnt nothing, and lost nothing
    assert not stability.diverged(made_up_run([*[7.0] * 12, 6.0, *[7.0] * 12], 7.0))  # one easy batch


def test_a_run_whose_loss_is_no_number_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> float:
        return math.nan

    monkeypatch.setattr(stability_run, "factor", broken)  # the first step makes the weights NaN
    found = run(Job("tiny", Variant(False, False, False), 0.1, 0), made_up_rows())
    assert found["steps"] == 2
    assert math.isnan(found["held_out"]["loss"])
    assert stability.diverged(found)


def test_an_early_end_favours_no_variant() -> None:
    runs = [{"variant": v, "rate": rate, "seed": 0} for v, rate in (("a", 0.1), ("a", 0.01), ("b", 0.1), ("b", 1.0))]
    assert stability.comparable(runs, ["a", "b"]) == [runs[0], runs[2]]
    assert stability.comparable(runs[1:3], ["a", "b"]) == runs[1:3]


def test_the_picture_bears_what_is_not_a_number() -> None:
    line = {"step": 0, "loss": 6.0, "max_attention_logit": 3.0, "output_norm": 5.0, "z2": 30.0}
    course = [line, {**line, "step": 9, "loss": math.nan, "max_attention_logit": math.inf, "output_norm": math.nan}]
    broken = {"variant": "none", "rate": 0.1, "seed": 0, "course": course, "held_out": {"loss": math.nan}}
    assert picture([broken], 6.0).startswith(b"\x89PNG")


def test_every_variant_looks_different() -> None:
    looks = {str(sorted(style_of(variant.name).items())) for variant in stability.VARIANTS}
    assert len(looks) == len(stability.VARIANTS) == 8


def test_rows_are_kept_as_they_are(tmp_path: Path) -> None:
    rows = made_up_rows(70)
    save_rows(tmp_path / "rows.npz", rows)
    back = load_rows(tmp_path / "rows.npz")
    for there, here in zip(back, rows, strict=True):
        assert [[ids.tolist() for ids in row] for row in there] == [[ids.tolist() for ids in row] for row in here]
    assert 4 < frequency_loss(TINY, back) < math.log(TINY.vocabulary.size) + 1


def test_codes_are_those_of_patches_in_raster_order() -> None:
    colours = torch.tensor([[[10, 200], [90, 10]], [[200, 90], [10, 10]]])
    pictures = colours.repeat_interleave(8, 1).repeat_interleave(8, 2)[..., None].expand(-1, -1, -1, 3)
    codes = picture_codes(pictures.to(torch.uint8).numpy(), 3)
    grey = colours.flatten(1)
    assert all(torch.equal(codes == codes[b, s], grey == grey[b, s]) for b in range(2) for s in range(4))


def test_rows_of_real_documents_are_half_pictures(shared_data: Path) -> None:
    apart, training = rows_of(TINY, shared_data)
    rows = [*apart, *training]
    assert all(sum(len(ids) for ids in row) <= TINY.length for row in rows)
    tokens = np.concatenate([ids for row in rows for ids in row])
    vocabulary = TINY.vocabulary
    assert 0.05 < ((tokens >= 4) & (tokens <= vocabulary.boi)).mean() < 0.6
    assert (tokens == vocabulary.boi).sum() == (tokens == vocabulary.eoi).sum() > 20
    assert (tokens < vocabulary.size).all()


def test_no_held_out_picture_or_text_is_trained_on(shared_data: Path) -> None:
    side = TINY.side**2

    def pictures(rows: list[list[Ids]]) -> set[bytes]:
        found = [
            ids[list(ids).index(TINY.vocabulary.boi) :][: side + 2]
            for row in rows
            for ids in row
            if TINY.vocabulary.boi in ids
        ]
        return {ids.tobytes() for ids in found}

    def pieces(rows: list[list[Ids]]) -> set[bytes]:
        texts = [ids[1:-1] for row in rows for ids in row if TINY.vocabulary.boi not in ids]
        return {ids[at : at + 12].tobytes() for ids in texts for at in range(len(ids) - 12)}

    apart, training = rows_of(TINY, shared_data)
    assert len(pictures(apart)) == 4
    assert not pictures(apart) & pictures(training)
    assert len(pieces(apart)) > 50
    assert not pieces(apart) & pieces(training)
