"""The benchmark of picture transforms runs and gives the figures that it promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import image_transforms
from benchmarks.image_transforms import large_originals, plain, psnr, read_pictures, reference


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, data in enumerate(read_pictures(None, 4)):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    return tmp_path


def test_it_runs_and_ends_with_its_figures(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_transforms.main(["--json", "--pictures", str(pictures), "--rounds", "2", "--count", "4", "--large", "0"])
    *_, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["pictures"] == 4
    assert figures["fast_ratio"] > 1  # 2.5 and more on a quiet machine: the benchmark's to say, not a test's
    assert figures["reference_ratio"] > 0.5
    assert figures["psnr"] > 30
    assert 0 < figures["codes_changed"] < figures["codes_changed_by_half_a_pixel"] < 1
    assert figures["codes_used"] > 100


def test_what_is_compared_is_the_same_picture(pictures: Path) -> None:
    for data in read_pictures(pictures, 4):
        assert np.array_equal(plain(data), reference(data))
    assert psnr(plain(data), plain(data)) == 99


def test_pictures_and_large_originals_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_transforms, "LARGE", ((1200, 900),))
    assert read_pictures(None, 3) == read_pictures(None, 3)
    assert large_originals(read_pictures(None, 3)) == large_originals(read_pictures(None, 3))


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no pictures"):
        read_pictures(tmp_path, 4)
