"""The loop on real ranks: what it learns, and that stopping, killing and damage change no bit of it.

All trainings that need not be killed run in one process group, one after the other.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.errors import RecipeError
from infra.storage import Storage
from model.data.loader import SequenceLoader
from model.data.steps import BatchSizes
from model.training.checkpoint import list_checkpoints
from model.training.config import RampConfig, ScheduleConfig
from model.training.module import TrainingModule
from model.training.monitors import read_metrics
from model.training.optimizer import make_optimizer, set_learning_rate
from model.training.schedule import factor
from model.transformer.load import shapes_of
from model.transformer.model import Transformer
from tests.model.training.rank import CONFIG, MODEL

pytestmark = pytest.mark.timeout(1800)

Lines = list[dict[str, Any]]
PLAIN = {"dropout": 0.0}
RAMP = {"batch_ramp": [RampConfig(until=12, batch=4)], "checkpoint_every": 2}
STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
CHECKPOINTING = {2: "full", 3: "selective"}
"""Activation checkpointing at some stages, which is to change nothing."""


def at(stage: int, precision: str = "fp32", **more: Any) -> dict[str, Any]:
    return {"resources": {"zero_stage": stage, "precision": precision, **more}}


TOGETHER: dict[str, dict[str, Any]] = {
    "counted": {**at(3), "model": {"layers": 8}, "check_sizes": True},
    **{f"whole-{stage}": at(stage) for stage in (1, 2, 3)},
    **{
        f"plain-{stage}-{precision}": {
            **at(stage, precision, activation_checkpointing=CHECKPOINTING.get(stage, "none")),
            "model": PLAIN,
        }
        for stage in STAGES
        for precision in PRECISIONS
    },
    "stopped": {**at(1), "stop_at": 4, "config": {"checkpoint_every": 100}},
    **{f"stopped-{stage}-bf16": {**at(stage, "bf16"), "stop_at": 4, "model": PLAIN} for stage in STAGES},
    **{f"given-{stage}": {**at(stage), "whole": True} for stage in (1, 3)},
    "given-3-bf16": {**at(3, "bf16", activation_checkpointing="selective"), "model": PLAIN, "whole": True},
    "tuned": {"run": "finetune", "config": {"schedule": ScheduleConfig(warmup_steps=1)}},
    "short": {"config": {"schedule": ScheduleConfig(warmup_steps=8)}},
    # A picture's label weighs 0.37, and two stretches of positions are left out, as a recipe says.
    "weighed": {**at(2), "config": {"image_weight": 0.37, "skip": [(8, 16), (40, 48)]}, "model": PLAIN},
    "ramp": {"config": RAMP},
    **{f"ramp-{stage}": {**at(stage), "config": RAMP, "model": PLAIN} for stage in STAGES},
}
"""Trainings on two ranks: by default with dropout 0.1, ZeRO 1, float32, two micro-batches a step and rank."""

KILLED: dict[str, dict[str, Any]] = {
    **{f"killed-{stage}": {**at(stage), "die_in": 5} for stage in (1, 2, 3)},
    # Every other step is a checkpoint, and the ramp ends with the third: gone on from the second, or the fourth.
    **{f"killed-ramp-{last}": {"config": RAMP, "die_at": last} for last in (3, 5)},
}
AGAIN = (*KILLED, "stopped", *(f"stopped-{stage}-bf16" for stage in STAGES), "whole-1")
"""What new processes go on with; of the last one, the newest checkpoint was damaged."""


ACCUMULATED: tuple[tuple[int, dict[str, Any]], ...] = (
    *((stage, {}) for stage in (1, 2, 3)),
    (1, {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}}),
)


class Trained:
    """Trainings by name: how they ended on rank 0, and their lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outcomes: dict[str, Any] = {}
        self._lines: dict[str, Lines] = {}
        self.accumulated: list[Any] = []
        """Errors of summed gradients, as ``ACCUMULATED`` names them."""

    def note(self, names: Any, ended: list[Any]) -> None:
        self.outcomes |= dict(zip(names, ended, strict=True))
        begun = [name for name in names if not isinstance(self.outcomes[name], Exception)]
        self._lines |= {name: read_metrics(self.store(name)) for name in begun}

    def __getitem__(self, name: str) -> Any:
        found = self.outcomes[name]
        if isinstance(found, Exception):
            raise found
        return found

    def store(self, name: str) -> Storage:
        return Storage(self.folder / name)

    def lines(self, name: str) -> Lines:
        return self._lines[name]

    def losses(self, name: str) -> list[float]:
        return [line["loss"] for line in self._lines[name]]

    def options(self, names: Any) -> list[dict[str, Any]]:
        runs = TOGETHER | KILLED
        return [{"store": self.store(name).root, **runs[name]} for name in names]


@pytest.fixture(scope="module")
def trained(ranks_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    found = Trained(folder)
    found.note(TOGETHER, ranks_of(folder)(runs=found.options(TOGETHER))[0])
    return found


@pytest.fixture(scope="module")
def alone(ranks_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two of them on one rank, and steps of many micro-batches."""
    folder = tmp_path_factory.mktemp("alone")
    found = Trained(folder)
    names = ("plain-1-fp32", "ramp-0")
    many = [{"accumulate": 64, **at(stage, "bf16", **more)} for stage, more in ACCUMULATED]
    ended = ranks_of(folder)(world=1, runs=[*found.options(names), *many])[0]
    found.note(names, ended[: len(names)])
    found.accumulated = ended[len(names) :]
    return found


@pytest.fixture(scope="module")
def again(ranks_of: Any, trained: Trained) -> Trained:
    """Gone on with in new processes, after ``kill -9``, a stop, or damage; beside what was never disturbed."""
    ranks, found = ranks_of(trained.folder), Trained(trained.folder)
    for name in KILLED:
        assert 0 not in ranks(**found.options([name])[0])
        if name.startswith("killed-ramp"):
            continue
        store = found.store(name)
        assert [c.step for c in list_checkpoints(store)] == [3]
        assert len(read_metrics(store)) == 5
        store.path("checkpoints/step-00000006").mkdir()  # what a kill in the middle of saving leaves
    flip_a_bit(trained.store("whole-1"))
    runs = [{k: v for k, v in run.items() if k not in ("die_in", "die_at", "stop_at")} for run in found.options(AGAIN)]
    found.note(AGAIN, ranks(runs=runs)[0])
    return found


def flip_a_bit(store: Storage) -> None:
    """In the newest checkpoint."""
    path = store.path(list_checkpoints(store)[0].files[0].name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}


CLOCK = ("tokens_per_s", "mfu", "memory", "data_s", "save_s", "look_s")


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    """A line without what depends on the machine's speed and memory."""
    return {key: value for key, value in line.items() if not key.startswith(CLOCK)}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_kill_changes_no_bit(trained: Trained, again: Trained, stage: int) -> None:
    """Dropout 0.1, two micro-batches a step and rank; killed after step 6's last backward, new processes."""
    assert MODEL.dropout == 0.1
    whole, resumed = f"whole-{stage}", f"killed-{stage}"
    assert trained[whole].step == again[resumed].step == 8  # 42 sequences in batches of 8 are 6 steps, 14 are 2
    assert same_bits(trained[whole].weights, again[resumed].weights)
    assert [loss.hex() for loss in trained.losses(whole)] == [loss.hex() for loss in again.losses(resumed)]
    assert list(map(without_clock, trained.lines(whole))) == list(map(without_clock, again.lines(resumed)))
    assert [c.step for c in list_checkpoints(again.store(resumed))] == [8, 6]  # the newest two are kept


def test_what_is_written_down(trained: Trained) -> None:
    whole, lines = trained["whole-1"], trained.lines("whole-1")
    assert whole.finished
    assert whole.facts["steps"] == 8
    assert whole.facts["world"] == 2
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["stage"] for line in lines] == ["one"] * 6 + ["two"] * 2
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert [line["step"] for line in lines if "held_out" in line] == [4, 8]
    assert set(lines[3]["held_out"]["pictures"]) == {"text", "image"}
    assert all(0 <= line["data_s"] < line["tokens"] / line["tokens_per_s"] for line in lines)  # it is part of the step
    assert [line["step"] for line in lines if "save_s" in line] == [4, 7]  # after the third and the sixth
    assert lines[-1]["total_tokens"] == 56 * 22 == sum(line["tokens"] for line in lines) == whole.facts["tokens"]


def test_one_rank_and_two_train_the_same(trained: Trained, alone: Trained) -> None:
    name = "plain-1-fp32"
    one, two = alone[name].weights, trained[name].weights
    assert max(np.abs(one[k] - two[k]).max() for k in one) < 1e-3
    assert alone.losses(name) == pytest.approx(trained.losses(name), abs=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_zero_stage_and_precision_agrees(trained: Trained, stage: int, precision: str) -> None:
    name = f"plain-{stage}-{precision}"
    assert trained[name].facts["precision"] == precision
    assert {w.dtype.name for w in trained[name].weights.values()} == {"float32"}
    within = 1e-3 if precision == "fp32" else 0.15
    assert trained.losses(name) == pytest.approx(trained.losses("plain-1-fp32"), abs=within)
    assert all(np.isfinite(line["grad_norm"]) and line["grad_norm"] > 0 for line in trained.lines(name))
    assert list_checkpoints(trained.store(name))[0].step == 8


@pytest.mark.parametrize(
    ("given", "placed"), [("given-1", "whole-1"), ("given-3", "whole-3"), ("given-3-bf16", "plain-3-bf16")]
)
def test_weights_placed_one_by_one_are_those_of_a_model_made_whole(trained: Trained, given: str, placed: str) -> None:
    """The one has its weights before it is trained, on each rank; the other one gets them parameter by parameter."""
    assert trained.losses(given)[0].hex() == trained.losses(placed)[0].hex()
    assert same_bits(trained[given].weights, trained[placed].weights)


def test_at_zero_3_no_rank_holds_the_whole_model(trained: Trained) -> None:
    """Bytes of tensors beyond what was there before, while weights are placed (on the rank that has them) and after."""
    vocabulary = trained["counted"].weights["lm_head.weight"].shape[0]
    shapes = shapes_of(MODEL.model_copy(update={"layers": 8}), vocabulary).values()
    sizes = [4 * math.prod(shape) for shape in shapes]
    one, other = trained["counted"].facts["sizes"]
    assert len(one) == len(sizes) + 1
    assert len(other) == 1
    assert max(one) < sum(sizes) / 2 + 2 * max(sizes) < sum(sizes)
    assert 0.4 * sum(sizes) < one[-1] < 0.6 * sum(sizes)
    assert 0.4 * sum(sizes) < other[-1] < 0.6 * sum(sizes)


def test_in_bf16_many_micro_batches_add_up_in_float32(alone: Trained) -> None:
    """At ZeRO 1 to 3, and with the optimizer offloaded; in bf16 the error would be half a percent at 64."""
    assert alone.accumulated == pytest.approx([0.0] * len(ACCUMULATED), abs=1e-6)


def test_a_stop_request_checkpoints_and_the_next_run_goes_on_bit_for_bit(trained: Trained, again: Trained) -> None:
    assert not trained["stopped"].finished
    assert trained["stopped"].step == 5
    assert same_bits(again["stopped"].weights, trained["whole-1"].weights)


@pytest.mark.parametrize("stage", STAGES)
def test_in_bf16_going_on_changes_no_bit_either(trained: Trained, again: Trained, stage: int) -> None:
    name = f"stopped-{stage}-bf16"
    assert not trained[name].finished
    assert same_bits(again[name].weights, trained[f"plain-{stage}-bf16"].weights)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(trained: Trained, again: Trained) -> None:
    assert same_bits(again["whole-1"].weights, trained["whole-1"].weights)
    assert [c.step for c in list_checkpoints(again.store("whole-1"))] == [8, 6]


def test_fine_tuning_counts_answers_only(trained: Trained) -> None:
    assert trained["tuned"].step == 2
    lines = trained.lines("tuned")
    assert all("loss_image" not in line and line["image_share"] == 0 for line in lines)
    assert sum(line["tokens"] for line in lines) == 16 * 22


@pytest.mark.parametrize("last", [3, 5])
def test_the_batch_grows_and_a_kill_in_or_after_the_ramp_changes_nothing(
    trained: Trained, again: Trained, last: int
) -> None:
    assert trained["ramp"].step == 3 + 4 + 2  # 12 of 42 sequences in fours, 30 in eights, then 14 of the next stage
    assert [line["tokens"] for line in trained.lines("ramp")] == [22 * n for n in (4, 4, 4, 8, 8, 8, 6, 8, 6)]
    assert same_bits(again[f"killed-ramp-{last}"].weights, trained["ramp"].weights)


def test_no_training_ends_in_its_warm_up(trained: Trained) -> None:
    with pytest.raises(RecipeError, match=r"schedule.warmup_steps is 8 and the training has 8 steps"):
        trained["short"]


def test_labels_of_pictures_weigh_what_the_recipe_says(trained: Trained, mix: Storage) -> None:
    """At two ranks, micro-batches of uneven labels and ZeRO 2: plain torch's weighted mean, every batch in one go.

    Positions that the recipe leaves out are never seen, and the checkpoint knows of them.
    """
    config = CONFIG.model_copy(update=TOGETHER["weighed"]["config"])
    loader = SequenceLoader(mix, "pretrain", 8, prefetch=0)
    loader.pass_over(config.skip)
    assert loader.steps == trained["weighed"].step == 5  # 42 - 8 - 2 sequences in eights, then 14 - 6
    model = Transformer(MODEL.model_copy(update=PLAIN), loader.vocabulary.size).initialise(7)
    optimizer, lines = make_optimizer(model, config.optimizer), trained.lines("weighed")
    for step, (batch, line) in enumerate(zip(loader, lines, strict=True)):
        set_learning_rate(optimizer, config.optimizer.learning_rate * factor(config.schedule, step, loader.steps))
        hidden = model(batch["tokens"], batch["documents"], batch["positions"])
        counted = batch["labels"] >= 0
        logits, labels = model.logits(hidden)[counted], batch["labels"][counted]
        weights = torch.where(batch["image"][counted], 0.37, 1.0)
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        terms = nll + config.z_loss * logits.logsumexp(-1).square()
        ((weights * terms).sum() / weights.sum()).backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip))
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-3)
        assert line["loss"] == pytest.approx(float(nll.detach().mean()), rel=1e-4), "what is watched is not weighed"
        optimizer.step()
        optimizer.zero_grad()
    store = trained.store("weighed")
    kept = list_checkpoints(store)[0].state["loader"]["skipped"]
    assert kept == [[8, 16], [40, 48]]


@pytest.fixture(scope="module")
def by_hand(mix: Storage) -> tuple[list[float], dict[str, np.ndarray]]:
    """The run of RAMP in plain torch, every global batch in one go: gradient norms and weights."""
    config = CONFIG.model_copy(update=RAMP)
    loader = SequenceLoader(mix, "pretrain", BatchSizes.of(8, [(12, 4)]), prefetch=0)
    model = Transformer(MODEL.model_copy(update=PLAIN), loader.vocabulary.size).initialise(7)
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
    trained: Trained, alone: Trained, by_hand: tuple[list[float], dict[str, np.ndarray]], stage: int, world: int
) -> None:
    """Three steps of one micro-batch on two ranks, then of two: what came before does not divide by two."""
    runs, name = (alone if world == 1 else trained), f"ramp-{stage}"
    norms, weights = by_hand
    assert [line["grad_norm"] for line in runs.lines(name)] == pytest.approx(norms, rel=1e-3)
    assert max(np.abs(runs[name].weights[n] - weights[n]).max() for n in weights) < 1e-3
