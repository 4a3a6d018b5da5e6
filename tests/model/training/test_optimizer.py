from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from infra.settings import ResourcesConfig
from model.training.config import OptimizerConfig
from model.training.optimizer import agree_on_bf16, make_optimizer, set_learning_rate, use_bf16
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer

MODEL = Transformer(TransformerConfig(dim=16, layers=2, heads=2, ffn=24), 300)


def test_matrices_decay_and_norms_do_not() -> None:
    groups = make_optimizer(MODEL, OptimizerConfig(weight_decay=0.1)).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    names = {id(p): name for name, p in MODEL.named_parameters()}
    decayed, plain = ([names[id(p)] for p in g["params"]] for g in groups)
    assert len(decayed) + len(plain) == len(names)
    assert all("norm" in name for name in plain)
    assert "lm_head.weight" in decayed
    assert "embedding.weight" in decayed
    assert len(plain) == 2 * (2 + 4) + 1  # two norms a layer, weights and biases of two QK-norms, the last norm


def test_the_rate_is_set_in_every_group() -> None:
    optimizer = make_optimizer(MODEL, OptimizerConfig())
    set_learning_rate(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(("found", "want"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)])
def test_auto_is_bf16_only_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], want: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert use_bf16(ResourcesConfig(precision="auto")) is want
    assert use_bf16(ResourcesConfig(precision="bf16"))
    assert not use_bf16(ResourcesConfig(precision="fp32"))


def test_precision_is_the_same_on_all_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three workers the last one is another machine."""

    def gathered(answers: list[Any], mine: bool) -> None:
        answers[:] = [mine, True, False]

    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_gather_object", gathered)
    monkeypatch.setattr("model.training.optimizer.use_bf16", lambda resources: True)
    assert not agree_on_bf16(ResourcesConfig(precision="auto"))
    assert capsys.readouterr().out == "precision: fp32, since 1 of 3 workers do not multiply bf16\n"
