"""The GPU's benchmark of training at toy size, on a CPU: every path that it has there, and its counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import mfu, mfu_steps
from benchmarks.mfu_steps import MasterWeights, batch, build, kind_of, stepper
from benchmarks.trainers import Ours, mean_nll
from model.training.watch.throughput import flops_per_token
from model.transformer.config import TransformerConfig

SMALL = mfu.shapes(small=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mfu_steps, "STEPS", 1)
    monkeypatch.setattr(mfu_steps, "WARM_UP", 1)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.usefixtures("quick")
def test_it_runs_and_ends_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    mfu.main(["--small", "--device", "cpu", "--skip-compile", "--rows", "2", "--json"])
    figures = last_line(capsys)
    assert figures["toy_size"] is True
    for name in ("7b", "1b"):
        assert figures[f"{name}_eager_ratio_to_peer"] > 0
        for who in ("ours", "peer"):
            assert 0 < figures[f"{name}_{who}_eager_mfu_causal"] < figures[f"{name}_{who}_eager_mfu_full"]
        assert sum(figures[f"profile_{name}_eager"].values()) == pytest.approx(1)
        assert figures[f"profile_{name}_eager"]["matrix products"] > 0
        assert figures[f"kernels_{name}_eager"]
    assert "failed" not in figures
    assert "left_out" not in figures


def test_without_a_gpu_it_says_what_it_would_need(capsys: pytest.CaptureFixture[str]) -> None:
    mfu.main(["--device", "cpu", "--json"])
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["measured"] is False
    assert "NOT measured" in out
    assert "1b: 1.3" in out


@pytest.mark.usefixtures("quick")
def test_what_does_not_fit_is_tried_smaller_and_what_fails_costs_itself_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mfu_steps.batch

    def full(shape: mfu_steps.Shape, rows: int, device: str) -> Any:
        if rows > 1:
            raise torch.OutOfMemoryError("full")
        return whole(shape, rows, device)

    monkeypatch.setattr(mfu_steps, "batch", full)
    monkeypatch.setattr(mfu, "build", build)
    mfu.main(["--small", "--device", "cpu", "--skip-compile", "--rows", "4", "1", "--json"])
    assert last_line(capsys)["7b_ours_eager_rows"] == 1
    mfu.main(["--small", "--device", "cpu", "--skip-compile", "--rows", "4", "--json"])
    assert "7b_peer_eager" in last_line(capsys)["failed"]
    mfu.main(["--small", "--device", "cpu", "--skip-compile", "--minutes", "0", "--json"])
    assert len(last_line(capsys)["left_out"]) == 5


def test_steps_train_both_sides_alike() -> None:
    micro = batch(SMALL["1b"], 2, "cpu")
    losses = {}
    for who in ("ours", "peer"):
        side = build(SMALL["1b"], "cpu", who)
        before = mean_nll(side, [micro])
        work = stepper(side, micro, MasterWeights(side.module))
        for _ in range(10):
            work()
        losses[who] = mean_nll(side, [micro])
        assert losses[who] < before - 0.005
    assert losses["ours"] == pytest.approx(losses["peer"], abs=0.02)


def test_weights_are_the_rounded_copies() -> None:
    side = build(SMALL["1b"], "cpu", "ours")
    assert isinstance(side, Ours)
    optimizer = MasterWeights(side.module)
    stepper(side, batch(SMALL["1b"], 1, "cpu"), optimizer)()
    for weight, master in zip(optimizer.weights, optimizer.masters, strict=True):
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, master.to(torch.bfloat16))
    assert any(not torch.equal(m, m.to(torch.bfloat16).float()) for m in optimizer.masters)


def test_the_counts_are_the_facts() -> None:
    seven = TransformerConfig()
    full, _ = flops_per_token(seven, 65536, 4096)
    embedding = 6 * 65536 * 4096  # 2,984 tokens a second on an A100 are 46.4% of it if that is counted, too
    assert 2984 * (full + embedding) / 312e12 == pytest.approx(0.464, abs=0.001)
    one = mfu.shapes(small=False)["1b"]
    assert one.config.parameters(one.vocabulary) == pytest.approx(1.3e9, rel=0.03)
    layer = mfu.shapes(small=False)["7b"].config
    assert (layer.dim, layer.heads, layer.ffn_dim) == (4096, 32, 11008)


def test_depths_tell_what_a_layer_takes() -> None:
    many, few = SMALL["7b"], SMALL["7b_shallow"]
    layer, rest, rows, peak = 0.5, 2.0, 3, 1e9
    found = mfu.projected(rest + 3 * layer, rest + layer, rows, many, few, peak)
    tokens = rows * many.length
    assert found["7b_projected_tokens_per_second"] == pytest.approx(tokens / (rest + 32 * layer))
    whole = many.config.model_copy(update={"layers": 32})
    full, _ = flops_per_token(whole, many.vocabulary, many.length)
    assert found["7b_projected_mfu_full"] == pytest.approx(full * tokens / (rest + 32 * layer) / peak)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "matrix products"),
        ("void flash::flash_fwd_kernel<...>", "attention"),
        ("triton_red_fused_native_layer_norm_backward_3", "fused by the compiler"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, silu>", "elementwise"),
    ],
)
def test_kernels_are_told_apart(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_an_unknown_card_wants_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert mfu.peak_of("cuda", None, 1.0) == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Other 9000")
    with pytest.raises(SystemExit, match="--peak"):
        mfu.peak_of("cuda", None, 1.0)
    assert mfu.peak_of("cuda", 100, 1.0) == 100e12
