"""The benchmark of attention runs on a CPU at small size, and stops where a backend computes something else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import attention
from infra.errors import CalummaError
from model.transformer import backends


def test_it_runs_and_ends_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    attention.main(["--small", "--json", "--rounds", "1"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures["missing"]) == {"xformers", "varlen"}
    assert figures["auto"] == "sdpa"
    assert figures["auto_ratio"] == 1
    for name in ("reference", "sdpa", "flex"):
        assert figures[f"{name}_error"] < 1e-4
        assert figures[f"{name}_forward_ms"] > 0
    assert figures["sdpa_tflops"] > 0
    assert "flex_ms" not in figures


def test_a_wrong_backend_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = backends.Sdpa.__call__

    def shifted(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return right(self, q, k, v.roll(1, 2))

    monkeypatch.setattr(backends.Sdpa, "__call__", shifted)
    with pytest.raises(CalummaError, match=r"sdpa with 4 key heads on cpu: error .* set resources\.attention_backend"):
        attention.parity(["sdpa"], "cpu", torch.float32, 4, 8)


def test_rows_are_full_of_documents() -> None:
    documents = attention.documents_of(3, 4096, np.random.default_rng(0), padding=100)
    assert documents.shape == (3, 4096)
    assert documents.dtype == torch.int32
    assert (documents[-1, -100:] == backends.PADDING).all()
    assert (documents[:2] >= 0).all()
    steps = documents[:2].diff(dim=1)
    assert set(steps.unique().tolist()) == {0, 1}
