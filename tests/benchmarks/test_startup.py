"""The benchmark of starting up runs, goes on where parts end, and gives the figures that it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import startup
from infra.errors import StoreError
from infra.storage import Storage


def test_it_runs_and_ends_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--json", "--items", "1000"])
    *_, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert (figures["items"], figures["samples"]) == (1000, 10_000_000)
    for name in ("plan", "resume", "later"):
        assert 0 < figures[f"{name}_seconds"] < 60
        assert 10 < figures[f"{name}_mib"] < 1024
        assert f"{name}_bytes_per_item" in figures


def test_the_listing_has_as_many_tars_as_asked_for(tmp_path: Path) -> None:
    context = startup._context(1000, tmp_path, "scan")
    found = list(Storage(context.recipe.sources[0].path or "").find())
    assert len(found) == len({file.name for file in found}) == 1000
    assert [file.name for file in found[:2]] == ["000/000000.tar", "000/000001.tar"]


def test_nothing_is_read_before_the_first_item(tmp_path: Path) -> None:
    context = startup._context(100, tmp_path, "scan")
    with (
        pytest.raises(startup.FirstItem, match=r"000/000000\.tar"),
        Storage(context.recipe.sources[0].path or "").open("000/000000.tar"),
    ):
        pass


def test_memory_is_that_of_the_measured_process_alone(tmp_path: Path) -> None:
    held = bytearray(800 << 20)
    held[::4096] = b"1" * len(held[::4096])
    assert startup.peak_mib() > 800
    assert startup._in_a_process(1000, tmp_path, "scan")["mib"] < 700


def test_the_later_step_reads_what_encode_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.documents import run as documents

    monkeypatch.setattr(documents, "DocumentMaker", documents.DocumentMaker)  # put back in the end
    done = startup.commit_most(1000, tmp_path)
    startup.hand_on(1000, tmp_path)
    assert startup.measure(1000, tmp_path, "tokenize")["first"] == startup.part_name(done)
    (startup._context(1000, tmp_path, "encode").store().path("parts") / f"{startup.part_name(5)}.json").unlink()
    with pytest.raises(StoreError, match=startup.part_name(5)):
        startup.measure(1000, tmp_path, "tokenize")
