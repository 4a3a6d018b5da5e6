"""The benchmark of encoding runs at toy size, on the CPU also what is meant for a GPU, and gives what it promises."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pytest

from benchmarks import encode
from benchmarks.encode_device import device_figures
from benchmarks.encoders import Contender, encoder_of, parts, random_tokenizer
from model.image_tokenizer.config import ImageTokenizerConfig

CONFIG = ImageTokenizerConfig.model_validate(encode.SMALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_tokenizer(CONFIG, tmp_path, encode.squares(1, CONFIG.resolution))
    return tmp_path


def test_it_runs_and_ends_with_its_figures(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "multiplies_bf16", lambda: False)
    encode.main(
        ["--small", "--json", "--rounds", "2", "--skip-compile", "--tokenizer", str(folder), "--photographs", "3"]
    )
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert "bf16: NOT measured" in out
    assert figures["bf16_measured"] is False
    assert figures["equal_codes"] == 1
    assert figures["codes_used"] > 10
    for key in ("ratio_to_peer", "ratio_to_peer_plain", "ratio_to_peer_channels_last", "bound_share"):
        assert figures[key] > 0
    assert 0.5 < figures["bf16_equal_codes"] <= 1
    assert figures["psnr_fp32_codes"] > 0
    assert {row["part"] for row in figures["parts"]} >= {"level 0", "level 1", "mid", "conv_out", "search"}


def test_bf16_can_be_forced(capsys: pytest.CaptureFixture[str]) -> None:
    encode.main(["--small", "--json", "--rounds", "1", "--skip-compile", "--force"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["bf16_measured"] is True
    assert figures["ours_bf16_seconds"] > 0


def test_what_is_meant_for_a_gpu(folder: Path) -> None:
    args = argparse.Namespace(small=True, skip_compile=True, batches=(1, 2))
    gflop = encode.encoding_gflop(CONFIG)
    figures = device_figures(
        args,
        CONFIG,
        encode.squares(2, CONFIG.resolution),
        folder,
        device="cpu",
        gflop=gflop,
        deadline=time.monotonic() + 60,
        window=0.01,
    )
    assert figures["equal_codes_device_and_cpu"] == figures["equal_codes_device_and_peer"] == 1
    assert figures["ratio_to_peer_fp32"] > 0
    assert figures["ratio_to_peer_bf16"] > 0
    assert figures["ours_fp32_2_per_second"] > 0
    assert "left_out" not in figures


def test_when_the_time_is_up_it_says_what_it_left_out(folder: Path) -> None:
    args = argparse.Namespace(small=True, skip_compile=False, batches=(1, 2))
    pictures = encode.squares(1, CONFIG.resolution)
    figures = device_figures(args, CONFIG, pictures, folder, device="cpu", gflop=1.0, deadline=0, window=0.01)
    assert "ours_bf16_compiled_2" in figures["left_out"]
    assert "ratio_to_peer_bf16" not in figures
    assert figures["parts_bf16"]


def test_parts_add_up(folder: Path) -> None:
    _, tokenizer = encoder_of(Contender(ours=True), folder, "cpu")
    assert tokenizer is not None
    import torch

    x_BCHW = torch.from_numpy(encode.squares(1, CONFIG.resolution)).permute(0, 3, 1, 2)
    rows = parts(tokenizer, x_BCHW, time.perf_counter)
    by_part = {row["part"]: row for row in rows}
    attention = 4e-9 * CONFIG.codes_per_image**2 * CONFIG.channels * CONFIG.multipliers[-1]  # two products, in no row
    assert sum(row["gflop"] for row in rows) + attention == pytest.approx(encode.encoding_gflop(CONFIG))
    assert all(row["convolutions"] <= row["seconds"] * 1.01 + 1e-4 for row in rows)
    assert by_part["level 0"]["gflop"] > by_part["conv_in"]["gflop"]


def test_the_gigaflop_are_those_in_the_facts() -> None:
    assert encode.encoding_gflop(ImageTokenizerConfig()) == pytest.approx(554, abs=2)
