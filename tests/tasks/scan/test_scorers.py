from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.errors import RecipeError, SourceError
from tasks.encode.decode import ImageError
from tasks.scan import scorers as module
from tasks.scan.config import ScorerConfig
from tasks.scan.facts import Finding
from tasks.scan.scorers import ScoredInput, ScoreQueue, Scorers, scored
from tasks.scan.tools import Pictures
from tasks.sources.base import RawImage, RawSample, Segment


class Brightness:
    """What a user's own scorer looks like: mean brightness times the factor in its weights file."""

    def __init__(self, options: Mapping[str, Any], weights: Path | None, device: str) -> None:
        assert weights is not None
        self.factor, self.device = float(weights.read_text()), device
        self.batches: list[int] = []

    def scores(self, samples: Sequence[ScoredInput]) -> Sequence[float]:
        self.batches.append(len(samples))
        if any("!" in text for s in samples for text in s.texts):
            raise ValueError("no exclamations")
        if any("short" in text for s in samples for text in s.texts):
            return []
        return [self.factor * _mean(s.picture) for s in samples]


def _mean(picture: Image.Image) -> float:
    values = picture.convert("L").resize((1, 1)).tobytes()
    return values[0] / 255


def grey(value: int, side: int = 8) -> RawImage:
    sink = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(sink, "PNG")
    return RawImage(f"{value}.png", sink.getvalue())


def pair(value: int, caption: str = "x") -> RawSample:
    return RawSample("k", "f", 1, captions=(caption,), images=(grey(value),))


def config(tmp_path: Path, **rest: object) -> ScorerConfig:
    (tmp_path / "w.txt").write_text("2.0")
    whole = {"name": "bright", "type": f"{__name__}:Brightness", "weights": "w.txt", **rest}
    return ScorerConfig.model_validate(whole)


def look(configs: Sequence[ScorerConfig], folder: Path, samples: Sequence[RawSample]) -> list[Finding]:
    queue = ScoreQueue(Scorers(configs, folder), Pictures(10**9))
    findings = [Finding("kept") for _ in samples]
    for place, sample in enumerate(samples):
        queue.add(place, sample)
    queue.finish(findings)
    return findings


def test_scores_are_recorded_and_bounds_filter(tmp_path: Path) -> None:
    bounds = config(tmp_path, min=0.5, max=1.5)
    found = look([bounds], tmp_path, [pair(0), pair(128), pair(255)])
    assert [(f.state, f.reason) for f in found] == [
        ("filtered", "score-bright"),
        ("kept", ""),
        ("filtered", "score-bright"),
    ]
    assert [f.scores[0][0] for f in found] == ["bright"] * 3
    assert [f.scores[0][1] for f in found] == pytest.approx([0, 2 * 128 / 255, 2])


def test_of_several_pictures_the_worst_counts(tmp_path: Path) -> None:
    images = (grey(0), grey(255), grey(128))
    document = RawSample("k", "f", 1, segments=tuple(Segment(image=n) for n in range(3)), images=images)
    (low,) = look([config(tmp_path, min=-1)], tmp_path, [document])
    (high,) = look([config(tmp_path, max=1.9)], tmp_path, [document])
    assert low.scores == (("bright", 0.0),)
    assert low.state == "kept"
    assert high.scores == (("bright", 2.0),)
    assert high.reason == "score-bright"


def test_batches_are_bounded_in_number_and_in_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Brightness] = []
    monkeypatch.setattr(Brightness, "__init__", _remembering(Brightness.__init__, made))
    monkeypatch.setattr(module, "BATCH", 4)
    samples = [pair(n, f"t{n}") for n in range(10)]
    whole = look([config(tmp_path)], tmp_path, samples)
    assert made[0].batches == [4, 4, 2]
    monkeypatch.setattr(module, "BATCH_PIXELS", 100)
    assert look([config(tmp_path)], tmp_path, samples) == whole
    assert made[1].batches == [2] * 5


def test_an_error_costs_the_sample_and_not_its_batch(tmp_path: Path) -> None:
    found = look([config(tmp_path)], tmp_path, [pair(255), pair(255, "hey!"), pair(255)])
    assert [f.state for f in found] == ["kept", "quarantined", "kept"]
    assert found[1].reason == "plugin-error"
    assert found[1].message.endswith("ValueError: no exclamations")


def test_a_score_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "nan.txt").write_text("nan")
    (found,) = look([config(tmp_path, weights="nan.txt")], tmp_path, [pair(255)])
    assert (found.state, found.reason) == ("quarantined", "plugin-error")


def test_what_is_wrong_with_a_scorer_stops_the_step(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"scan\.scorers\.bright: .* returned 0 scores for 1 pictures"):
        look([config(tmp_path)], tmp_path, [pair(0, "short")])
    with pytest.raises(SourceError, match=r"gone\.bin: no such file; correct scan\.scorers\.bright\.weights"):
        Scorers([config(tmp_path, weights="gone.bin")], tmp_path)
    with pytest.raises(RecipeError, match=r"scan\.scorers\.bright: .* cannot be made \(AssertionError"):
        Scorers([config(tmp_path, weights=None)], tmp_path)
    with pytest.raises(RecipeError, match=r"scan\.scorers\.bright\.type: 'nsfv' cannot be imported"):
        Scorers([config(tmp_path, type="nsfv")], tmp_path)


def test_a_picture_that_cannot_be_decoded_again_costs_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Pictures.open

    def sometimes(self: Pictures, raw: RawImage) -> Image.Image:
        if raw.name == "7.png":
            raise ImageError("memory", "no room for it")
        return decode(self, raw)

    monkeypatch.setattr(Pictures, "open", sometimes)
    monkeypatch.setattr(module, "BATCH", 2)
    images = (grey(0), grey(7), grey(255))
    document = RawSample("k", "f", 1, segments=tuple(Segment(image=n) for n in range(3)), images=images)
    found = look([config(tmp_path, min=-1)], tmp_path, [pair(255), document, pair(7), pair(0)])
    assert [f.state for f in found] == ["kept", "quarantined", "quarantined", "kept"]
    assert {(f.reason, f.message) for f in found[1:3]} == {("memory", "7.png: no room for it")}
    assert [f.scores for f in found] == [(("bright", 2.0),), (), (), (("bright", 0.0),)]


def test_a_finding_takes_all_scores_and_the_first_reason() -> None:
    configs = [ScorerConfig(name="a", type="x", max=1), ScorerConfig(name="b", type="x", min=1)]
    assert scored(Finding("kept"), configs, [[2.0], [0.5]]).reason == "score-a"
    assert scored(Finding("kept"), configs, [[0.0], [0.5]]).scores == (("a", 0.0), ("b", 0.5))
    assert scored(Finding("kept"), configs, [[0.0], ["it broke"]]) == Finding("quarantined", "plugin-error", "it broke")


def _remembering(init: Any, made: list[Brightness]) -> Any:
    def wrapped(self: Brightness, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    return wrapped
