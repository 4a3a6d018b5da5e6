from __future__ import annotations

import pytest
import torch

from model.training.watch.throughput import Throughput, flops_per_token, matmul_rate, nominal_peak
from model.transformer.config import TransformerConfig


def test_both_counts_of_chameleon_7b() -> None:
    """2,984 tokens/s on an A100 of 312 TFLOP/s are 46.4% with full attention, the embedding counted too."""
    embedding = 6 * 65536 * 4096 * 2984 / 312e12  # looked up, not multiplied
    full, causal = flops_per_token(TransformerConfig(), 65536, 4096)
    found = Throughput(full, causal, 312e12, "").mfu(2984)
    assert found["mfu_full"] == pytest.approx(0.464 - embedding, abs=0.001)
    assert full - causal == 6 * 32 * 4096 * 4096
    assert found["mfu_causal"] == pytest.approx(0.464 - embedding - 0.5 * 0.0616, abs=0.001)


DEVICES = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None,
    "NVIDIA RTX A1000": None,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA GH200 480GB": None,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "AMD Instinct MI300X": 1307e12,
    "Somebody's GPU": None,
}
"""Names as drivers give them."""


def test_a_known_device_has_its_nominal_rate_and_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for name, peak in DEVICES.items():
        monkeypatch.setattr("torch.cuda.get_device_name", lambda device, name=name: name)
        assert nominal_peak(cuda, torch.bfloat16) == peak, name
        assert nominal_peak(cuda, torch.float32) is None
    assert nominal_peak(torch.device("cpu"), torch.bfloat16) is None
    before = torch.get_rng_state()
    assert 1e7 < matmul_rate(torch.device("cpu"), torch.float32, 64) < 1e14
    assert torch.equal(before, torch.get_rng_state())
