from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.storage import Storage
from model.data.loader import SequenceLoader
from model.data.steps import BatchSizes
from model.training.checkpoint import list_checkpoints
from model.training.config import RampConfig
from model.training.module import TrainingModule
from model.training.monitors import read_metrics
from model.training.optimizer import make_optimizer, set_learning_rate
from model.training.schedule import factor
from model.transformer.model import Transformer
from tests.model.training.rank import CONFIG, MODEL

pytestmark = pytest.mark.timeout(900)


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}


def test_two_ranks_learn_and_resume_bit_for_bit_after_a_kill(ranks: Any, tmp_path: Path) -> None:
    """Dropout 0.1, two micro-batches a step and rank, ZeRO 1, 2 and 3; killed after step 6's last backward."""

    def runs(name: str, **options: Any) -> list[dict[str, Any]]:
        stages = (
            {"store": str(tmp_path / f"{name}-{stage}"), "resources": {"zero_stage": stage}} for stage in (1, 2, 3)
        )
        return [{**stage, **options} for stage in stages]

    assert MODEL.dropout == 0.1
    undisturbed = ranks(runs=runs("whole"))[0]
    for killed in runs("killed", die_in=5):
        assert 0 not in ranks(**killed)
        store = Storage(killed["store"])
        assert [c.step for c in list_checkpoints(store)] == [3]
        assert len(read_metrics(store)) == 5
        store.path("checkpoints/step-00000006").mkdir()  # what a kill in the middle of saving leaves
    resumed = ranks(runs=runs("killed"))[0]

    for stage, whole, again in zip((1, 2, 3), undisturbed, resumed, strict=True):
        assert whole.finished
        assert whole.step == again.step == 8  # 42 sequences in batches of 8 are 6 steps, 14 are 2
        assert same_bits(whole.weights, again.weights)
        lines, others = (read_metrics(Storage(tmp_path / f"{name}-{stage}")) for name in ("whole", "killed"))
        assert [line["loss"].hex() for line in lines] == [line["loss"].hex() for line in others]
        assert [without_clock(line) for line in lines] == [without_clock(line) for line in others]
        kept = list_checkpoints(Storage(tmp_path / f"killed-{stage}"))
        assert [c.step for c in kept] == [8, 6]  # the newest two are kept

    whole, lines = undisturbed[0], read_metrics(Storage(tmp_path / "whole-1"))
    assert whole.facts["steps"] == 8
    assert whole.facts["world"] == 2
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["stage"] for line in lines] == ["one"] * 6 + ["two"] * 2
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert [line["step"] for line in lines if "held_out" in line] == [4, 8]
    assert set(lines[3]["held_out"]["pictures"]) == {"text", "image"}
    assert lines[-1]["total_tokens"] == 56 * 22 == sum(line["tokens"] for line in lines) == whole.facts["tokens"]


CLOCK = ("tokens_per_s", "mfu", "memory")


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    """A line without what depends on the machine's speed and memory."""
    return {key: value for key, value in line.items() if not key.startswith(CLOCK)}


def test_one_rank_and_two_train_the_same(ranks: Any, tmp_path: Path) -> None:
    plain = {"dropout": 0.0}
    one = ranks(world=1, store=str(tmp_path / "one"), model=plain)[0]
    two = ranks(world=2, store=str(tmp_path / "two"), model=plain)[0]
    assert max(np.abs(one.weights[k] - two.weights[k]).max() for k in one.weights) < 1e-3
    losses = [[m["loss"] for m in read_metrics(Storage(tmp_path / name))] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.fixture(scope="module")
def stage_one(ranks_of: Any, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of ZeRO-1 in float32, which all other settings are held against."""
    folder = tmp_path_factory.mktemp("stage-one")
    assert ranks_of(folder)(store=str(folder / "store"), model={"dropout": 0.0})[0].finished
    return [line["loss"] for line in read_metrics(Storage(folder / "store"))]


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (3, "bf16")]
)
def test_every_zero_stage_and_precision_agrees(
    ranks: Any, tmp_path: Path, stage_one: list[float], stage: int, precision: str
) -> None:
    store = str(tmp_path / "store")
    resources = {
        "zero_stage": stage,
        "precision": precision,
        "activation_checkpointing": {2: "full", 3: "selective"}.get(stage, "none"),
    }
    ended = ranks(store=store, model={"dropout": 0.0}, resources=resources)[0]
    assert ended.facts["precision"] == precision
    assert {w.dtype.name for w in ended.weights.values()} == {"float32"}
    lines = read_metrics(Storage(store))
    assert [line["loss"] for line in lines] == pytest.approx(stage_one, abs=1e-3 if precision == "fp32" else 0.15)
    assert all(np.isfinite(line["grad_norm"]) and line["grad_norm"] > 0 for line in lines)
    assert list_checkpoints(Storage(store))[0].step == 8


def test_a_stop_request_checkpoints_and_the_next_run_goes_on_bit_for_bit(ranks: Any, tmp_path: Path) -> None:
    store = str(tmp_path / "stopped")
    first = ranks(store=store, stop_at=4, config={"checkpoint_every": 100})[0]
    assert not first.finished
    assert [c.step for c in list_checkpoints(Storage(store))] == [first.step] == [5]
    whole = ranks(store=str(tmp_path / "whole"), config={"checkpoint_every": 100})[0]
    assert same_bits(ranks(store=store, config={"checkpoint_every": 100})[0].weights, whole.weights)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(ranks: Any, tmp_path: Path) -> None:
    store = Storage(tmp_path / "store")
    whole = ranks(store=store.root)[0]
    newest = list_checkpoints(store)[0]
    name = next(f.name for f in newest.files if f.name.endswith(".safetensors"))
    path = store.path(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert same_bits(ranks(store=store.root)[0].weights, whole.weights)
    assert [c.step for c in list_checkpoints(store)] == [8, 6]


def test_fine_tuning_counts_answers_only(ranks: Any, tmp_path: Path) -> None:
    ended = ranks(store=str(tmp_path / "tuned"), run="finetune")[0]
    assert ended.step == 2
    lines = read_metrics(Storage(tmp_path / "tuned"))
    assert all("loss_image" not in line and line["image_share"] == 0 for line in lines)
    assert sum(line["tokens"] for line in lines) == 16 * 22


RAMP = {"batch_ramp": [RampConfig(until=12, batch=4)], "checkpoint_every": 2}


@pytest.fixture(scope="module")
def grown(ranks_of: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights of a run whose batch grows, and that nothing interrupts."""
    folder = tmp_path_factory.mktemp("grown")
    whole = ranks_of(folder)(store=str(folder / "store"), config=RAMP)[0]
    assert whole.step == 3 + 4 + 2  # 12 of 42 sequences in fours, 30 in eights, then 14 of the next stage
    lines = read_metrics(Storage(folder / "store"))
    assert [line["tokens"] for line in lines] == [22 * n for n in (4, 4, 4, 8, 8, 8, 6, 8, 6)]
    weights: dict[str, Any] = whole.weights
    return weights


@pytest.mark.parametrize("last", [3, 5])
def test_the_batch_grows_and_a_kill_in_or_after_the_ramp_changes_nothing(
    ranks: Any, tmp_path: Path, grown: dict[str, Any], last: int
) -> None:
    """Every other step is a checkpoint, and the ramp ends with the third: gone on from the second, or the fourth."""
    store = str(tmp_path / "killed")
    assert 0 not in ranks(store=store, die_at=last, config=RAMP)
    assert same_bits(ranks(store=store, config=RAMP)[0].weights, grown)


@pytest.fixture(scope="module")
def by_hand(mix: Storage) -> tuple[list[float], dict[str, np.ndarray]]:
    """The run of RAMP in plain torch, every global batch in one go: gradient norms and weights."""
    config = CONFIG.model_copy(update=RAMP)
    loader = SequenceLoader(mix, "pretrain", BatchSizes.of(8, [(12, 4)]), prefetch=0)
    model = Transformer(MODEL.model_copy(update={"dropout": 0.0}), loader.vocabulary.size).initialise(7)
    module, optimizer = TrainingModule(model, config.z_loss, 1.0), make_optimizer(model, config.optimizer)
    norms = []
    for step, batch in enumerate(loader):
        set_learning_rate(optimizer, config.optimizer.learning_rate * factor(config.schedule, step, loader.steps))
        (module(batch)[0] / int(batch["loss_mask"].sum())).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)))
        optimizer.step()
        optimizer.zero_grad()
    return norms, {name: weight.numpy() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize(("stage", "world"), [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)])
def test_a_growing_batch_is_that_of_plain_torch(
    ranks: Any, tmp_path: Path, by_hand: tuple[list[float], dict[str, np.ndarray]], stage: int, world: int
) -> None:
    """Three steps of one micro-batch on two ranks, then of two: what came before does not divide by two."""
    options = {"config": RAMP, "resources": {"zero_stage": stage}, "model": {"dropout": 0.0}}
    found = ranks(world=world, store=str(tmp_path / "store"), **options)[0]
    norms, weights = by_hand
    assert [line["grad_norm"] for line in read_metrics(Storage(tmp_path / "store"))] == pytest.approx(norms, rel=1e-3)
    assert max(np.abs(found.weights[name] - weights[name]).max() for name in weights) < 1e-3
