"""What is seen inside a model, held against the same worked out plainly, and that seeing it changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.storage import Storage
from model.data.loader import SequenceLoader
from model.training.config import OptimizerConfig
from model.training.module import MODALITIES, TrainingModule, figures_of
from model.training.monitors import read_metrics
from model.training.optimizer import make_optimizer
from model.training.watch.config import WatchConfig
from model.training.watch.look import Watch, largest_logit, sampled_logits
from model.training.watch.updates import squared_norms
from model.transformer.backends import document_mask
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer

CONFIG = TransformerConfig(dim=32, layers=3, heads=4, kv_heads=2, ffn=64, dropout=0.0)


@pytest.fixture
def batch(mix: Storage) -> dict[str, Tensor]:
    return next(iter(SequenceLoader(mix, "pretrain", batch=4, prefetch=0)))


@pytest.fixture
def model(mix: Storage) -> Transformer:
    return Transformer(CONFIG, SequenceLoader(mix, "pretrain", batch=4).vocabulary.size).initialise(5)


def test_the_largest_logit_is_that_of_written_out_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 12, 6, generator=generator), torch.randn(2, 2, 12, 6, generator=generator)
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 9 + [-1] * 3], dtype=torch.int32)
    seen = document_mask(documents) & (documents >= 0)[:, None, :, None]
    scores = (q @ k.repeat_interleave(2, 1).transpose(2, 3) * 6**-0.5).masked_fill(~seen, -torch.inf)
    for chosen in (torch.arange(12), torch.arange(1, 12, 3)):
        assert float(largest_logit(q, k, documents, chosen)) == pytest.approx(float(scores[:, :, chosen].max()))
    assert float(largest_logit(q[1:], k[1:], documents[1:], torch.tensor([10]))) == -torch.inf  # only padding


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_logits_are_sampled_without_changing_a_forward(
    model: Transformer, batch: dict[str, Tensor], checkpointing: Any
) -> None:
    model.run_with(activation_checkpointing=checkpointing)
    inputs = (batch["tokens"], batch["documents"], batch["positions"])
    plain = model(*inputs)
    with sampled_logits(model, 24, 0) as every, torch.no_grad():
        watched = model(*inputs)
    with sampled_logits(model, 4, 7) as some, torch.no_grad():
        model(*inputs)
    assert torch.equal(plain, watched)
    assert len(every) == CONFIG.layers
    assert all(-torch.inf < float(s) <= float(e) for s, e in zip(some, every, strict=True))
    with torch.no_grad():  # twice the queries, twice the logits: what is sampled are queries and keys
        model.layers[1].attention.q_norm.weight.mul_(2)  # type: ignore[union-attr, operator]
    with sampled_logits(model, 24, 0) as louder, torch.no_grad():
        model(*inputs)
    assert float(louder[0]) == float(every[0])
    assert float(louder[1]) == pytest.approx(2 * float(every[1]))


@pytest.mark.parametrize("every", [1, 4, 6, 20, 64])
def test_each_look_is_at_other_positions(model: Transformer, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """In as many looks as positions lie between two sampled ones, every position is sampled once."""
    shifts: list[int] = []
    stopped = RuntimeError("seen")

    def sample(transformer: Transformer, positions: int, shift: int) -> Any:
        shifts.append(shift)
        raise stopped

    monkeypatch.setattr("model.training.watch.look.sampled_logits", sample)
    watch = Watch(PlainEngine(make_optimizer(model, OptimizerConfig())), model, WatchConfig(every=every))
    batch = {n: torch.zeros(1, 4, dtype=torch.int32) for n in ("tokens", "labels", "documents", "positions", "image")}
    for step in range(every, 64 * every + 1, every):
        with pytest.raises(RuntimeError, match="seen"):
            watch.look(step, batch)
    for stride in (64, 48, 63, 6):
        assert {shift % stride for shift in shifts} == set(range(stride))


def test_figures_by_modality_and_by_layer(model: Transformer, batch: dict[str, Tensor]) -> None:
    module = TrainingModule(model, 1e-5, 1.0)
    inputs: list[Tensor] = []
    for layer in (*model.layers, model.norm):
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    total, sums = module(batch)
    found = figures_of(dict(zip(module.sums, sums.tolist(), strict=True)))

    logits = model.logits(model(batch["tokens"], batch["documents"], batch["positions"])).detach().double()
    log_z = logits.logsumexp(-1)
    counted = batch["labels"] >= 0
    for modality, where in (("image", batch["image"]), ("text", counted & ~batch["image"])):
        assert found[f"log_z_{modality}"] == pytest.approx(float(log_z[where].mean()), rel=1e-5)
        assert found[f"z2_{modality}"] == pytest.approx(float(log_z[where].square().mean()), rel=1e-5)
        nll = torch.nn.functional.cross_entropy(logits[where], batch["labels"][where])
        assert found[f"loss_{modality}"] == pytest.approx(float(nll), rel=1e-5)
    assert found["log_z"] == pytest.approx(float(log_z[counted].mean()), rel=1e-5)
    assert found["image_share"] == pytest.approx(float(batch["image"].sum() / counted.sum()))
    real = batch["documents"] >= 0
    norms = [float(x.norm(dim=-1)[real].mean()) for x in inputs[: CONFIG.layers + 1]]
    assert found["residual_norms"] == pytest.approx(norms, rel=1e-5)
    assert found["output_norm"] == found["residual_norms"][-1]
    assert found["tokens"] == int(real.sum())
    assert float(total.detach()) == pytest.approx(
        sum(
            found[f"loss_{m}"] * int(n)
            for m, n in zip(MODALITIES, ((counted & ~batch["image"]).sum(), batch["image"].sum()), strict=True)
        )
        + 1e-5 * found["z2"] * int(counted.sum()),
        rel=1e-4,
    )


class PlainEngine:
    """An engine as far as sizes of updates go: torch's optimizer and a device."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.device = optimizer, torch.device("cpu")


def test_the_size_of_an_update_is_what_the_weights_moved(model: Transformer, batch: dict[str, Tensor]) -> None:
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=3e-3, weight_decay=0.5))
    engine, module = PlainEngine(optimizer), TrainingModule(model, 0.0, 1.0)
    assert float(squared_norms(engine, model)[1].sum()) == 0  # before the first step
    for _ in range(3):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.zero_grad()
        module(batch)[0].backward()
        optimizer.step()
    names, sums = squared_norms(engine, model)
    assert names == ["embedding", "lm_head", "norms", "layer_00", "layer_01", "layer_02"]
    moved = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    weights = {n: p.detach() for n, p in model.named_parameters()}
    groups = {"embedding": "embedding.", "lm_head": "lm_head.", "layer_01": "layers.1."}
    for group, prefix in groups.items():
        found = [n for n in moved if n.startswith(prefix) and "norm" not in n]
        for row, values in enumerate((moved, weights)):
            want = sum(float(values[n].double().square().sum()) for n in found)
            assert float(sums[row, names.index(group)]) == pytest.approx(want, rel=2e-3)
    norms = sum(float(moved[n].double().square().sum()) for n in moved if "norm" in n)
    assert float(sums[0, 2]) == pytest.approx(norms, rel=2e-3)


def test_in_bf16_without_zero_the_optimizers_copies_stand_for_the_parameters(
    model: Transformer, batch: dict[str, Tensor]
) -> None:
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=3e-3))
    TrainingModule(model, 0.0, 1.0)(batch)[0].backward()
    optimizer.step()
    _, want = squared_norms(PlainEngine(optimizer), model)
    parameters = list(model.parameters())
    copies = [p.detach().clone() for p in parameters]
    for p, copy in zip(parameters, copies, strict=True):
        optimizer.state[copy] = optimizer.state.pop(p)
        p.detach().zero_()
    outer: Any = SimpleNamespace(
        optimizer=optimizer, param_groups=optimizer.param_groups, fp16_groups=[parameters], fp32_groups=[copies]
    )
    assert torch.equal(squared_norms(PlainEngine(outer), model)[1], want)


LOOKS = ("max_attention_logit", "max_attention_logits", "update_ratio", "memory_gb")
RUNS: dict[str, dict[str, Any]] = {
    "unwatched": {"watch": WatchConfig(every=0)},
    "zero-1": {},
    "zero-0": {"resources": {"zero_stage": 0}},
    "zero-3": {"resources": {"zero_stage": 3}},
}


@pytest.fixture(scope="module")
def runs(ranks_of: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, list[dict[str, Any]]]]:
    """Outcomes and lines of short trainings with dropout on two ranks; all but one are looked into at every step."""
    folder = tmp_path_factory.mktemp("watched")
    options = [{"store": str(folder / name), **more} for name, more in RUNS.items()]
    ended = ranks_of(folder)(watch=WatchConfig(every=1), runs=options)[0]
    lines = [read_metrics(Storage(folder / name)) for name in RUNS]
    return dict(zip(RUNS, zip(ended, lines, strict=True), strict=True))


def test_watching_every_step_leaves_every_bit_as_it_was(runs: dict[str, Any]) -> None:
    (plain, unwatched), (ended, lines) = runs["unwatched"], runs["zero-1"]
    assert plain.weights.keys() == ended.weights.keys()
    assert all(plain.weights[name].tobytes() == w.tobytes() for name, w in ended.weights.items())
    assert not any(key in line for line in unwatched for key in LOOKS)
    for line, other in zip(lines, unwatched, strict=True):
        assert line["loss"].hex() == other["loss"].hex()
        assert line["residual_norms"] == other["residual_norms"]
        assert line["max_attention_logit"] == max(line["max_attention_logits"]) > 0
        assert len(line["residual_norms"]) == len(line["max_attention_logits"]) + 1 == 3
        assert line["residual_norms"][-1] == line["output_norm"]
        assert 0 < line["memory_gb"] < 100
        assert 0 < line["mfu_causal"] < line["mfu_full"]
        assert line["skipped_steps"] == 0
    assert ended.facts["peak_from"].startswith("CPU, float32, measured")


@pytest.mark.parametrize(("name", "tolerance"), [("zero-0", 1e-3), ("zero-3", 1e-3)])
def test_what_is_seen_is_the_same_at_every_zero_stage(runs: dict[str, Any], name: str, tolerance: float) -> None:
    ended, lines = runs[name]
    assert not isinstance(ended, Exception), ended
    for line, want in zip(lines, runs["zero-1"][1], strict=True):
        assert line["update_ratio"] == pytest.approx(want["update_ratio"], rel=tolerance)
        assert set(want["update_ratio"]) == {"all", "embedding", "lm_head", "norms", "layer_00", "layer_01"}
        for key in ("max_attention_logits", "residual_norms"):
            assert line[key] == pytest.approx(want[key], rel=tolerance)
