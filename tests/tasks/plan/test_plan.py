from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from infra.errors import RecipeError, SourceError
from tasks.plan.cost import CostPlan, plan_cost
from tasks.plan.data import source_sizes, supplies
from tasks.plan.rates import Rate, Rates, load_rates
from tasks.plan.render import render
from tasks.plan.training import Memory
from tasks.recipe import load_recipe


def rates(**values: float) -> Rates:
    """Rates of 1 but for those named."""
    names = [n for n in Rates.model_fields if n != "device"]
    return Rates(
        device="A100",
        **{n: Rate(value=values.get(n, 1.0), unit="u", measured=False, basis="for a test") for n in names},  # type: ignore[arg-type]
    )


def value(plan: CostPlan, step: str, what: str) -> str:
    (found,) = [line.value for line in (*plan.data, *plan.training) if (line.step, line.what) == (step, what)]
    return found


def test_the_papers_data_and_model_by_arithmetic() -> None:
    recipe = load_recipe("chameleon-7b")
    plan = plan_cost(
        recipe, rates(encode=227, device_flops=312e12, train_utilisation=0.4486, device_hour=2, stored_month=0.023)
    )
    sizes = {s.name: s for s in plan.sources}
    pairs = sizes["pairs"]
    assert (pairs.samples, pairs.pictures, pairs.items) == (1_400_000_000, 1_400_000_000, 140_000)
    # Stage 1 as FACTS has it: 2.9 T, 1.5 T and 0.4 T tokens, <s> and </s> among them.
    supply = supplies(recipe, plan.sources)
    assert [supply[n].tokens for n in ("text", "pairs", "interleaved")] == [29 * 10**11, 15 * 10**11, 4 * 10**11]
    pictures = sum(s.pictures for s in plan.sources)
    assert value(plan, "encode", "codes") == f"{pictures * 2048 / 1e12:.3g} TB"
    assert value(plan, "pretrain", "parameters") == "7,013,158,912"
    assert value(plan, "mix", "sequences") == "19.6 TB"  # 18.4 TB of ids, 1.15 TB of starts
    hours = float(value(plan, "pretrain", "training").split()[0].replace(",", ""))
    assert hours == pytest.approx(856_481, rel=0.02), "the paper's A100-hours at the utilisation derived from them"


FACTS = {
    # workers, tokens/s and GPU, GPU-hours, MFU by full attention
    "chameleon-7b": (1024, 2984, 856_481, 0.464),
    "chameleon-34b": (3072, 597, 4_282_407, 0.431),
}


@pytest.mark.parametrize("name", FACTS)
def test_training_takes_the_papers_hours(name: str) -> None:
    recipe = load_recipe(name)
    workers, speed, gpu_hours, utilisation = FACTS[name]
    assert recipe.resources.train_workers == workers
    assert recipe.mix.tokens / speed / 3600 == pytest.approx(gpu_hours, rel=0.002)
    # FACTS counts the embedding as work, and so reaches a share that is higher by what that is.
    size, length = recipe.vocabulary.size, recipe.mix.sequence_length
    ours = recipe.model.flops_per_token(size, length)
    theirs = 6 * recipe.model.parameters(size) + 12 * recipe.model.layers * recipe.model.dim * length
    assert theirs * speed / 312e12 == pytest.approx(utilisation, rel=0.005)
    plan = plan_cost(recipe, rates(device_flops=312e12, train_utilisation=utilisation * ours / theirs))
    assert float(value(plan, "pretrain", "training").split()[0].replace(",", "")) == pytest.approx(gpu_hours, rel=0.01)
    end = value(plan, "pretrain", "from beginning to end")
    assert float(end.split()[0].replace(",", "")) == pytest.approx(gpu_hours / workers, rel=0.01)


def test_nodes_memory_and_checkpoints_of_both_sizes() -> None:
    seven, large = (plan_cost(load_recipe(name), rates()) for name in FACTS)
    assert value(seven, "pretrain", "a checkpoint") == "84.2 GB"  # 12 B of 7,013,158,912
    assert value(large, "pretrain", "parameters") == "34,293,522,432"
    line = next(x for x in seven.training if x.what == "from beginning to end")
    assert "1,024 A100 in 128 nodes of 8" in line.arithmetic
    for plan in (seven, large):
        needed = value(plan, "pretrain", "memory a GPU, estimated").split()
        assert needed[1] == "GB"
        assert float(needed[0]) < 72, "an A100 has 80 GB"


def test_memory_by_the_stated_formula() -> None:
    recipe = load_recipe("chameleon-7b", ["resources.train_workers=64", "resources.micro_batch=1"])
    p, tokens = 7_013_158_912, 4096

    def of(**changes: object) -> Memory:
        resources = recipe.resources.model_copy(update=changes)
        return Memory.of(recipe.model_copy(update={"resources": resources}))

    stages = [of(zero_stage=stage, activation_checkpointing="full") for stage in (0, 1, 2, 3)]
    assert [m.weights for m in stages] == [2 * p, 2 * p, 2 * p, 2 * p / 64]
    assert [m.gradients for m in stages] == [2 * p, 2 * p, 2 * p / 64, 2 * p / 64]
    assert [m.optimizer for m in stages] == [12 * p / 64] * 4
    layer = 2 * tokens * (11 * 4096 + 4 * 4096 + 4 * 11008)
    assert stages[0].activations == 2 * tokens * 32 * 4096 + layer
    assert of(activation_checkpointing="none").activations == 32 * layer
    assert stages[0].activations < of(activation_checkpointing="selective").activations < 32 * layer
    plain = of(precision="fp32", zero_stage=0)
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * p, 4 * p, 8 * p)


def test_the_papers_mixture() -> None:
    recipe = load_recipe("chameleon-7b")
    mixture = plan_cost(recipe, rates()).mixture
    assert mixture is not None
    assert mixture.tokens == 9_200_000_000_000
    assert round(mixture.passes, 2) == 1.92
    assert -(-mixture.tokens // recipe.mix.sequence_length) == pytest.approx(2.25e9, rel=0.002)
    one, two = mixture.stages().values()
    assert sum(q.tokens for q in one) == 7_360_000_000_000
    assert [q.share for q in one] == pytest.approx([2.9 / 4.8, 1.5 / 4.8, 0.4 / 4.8])
    assert sum(q.tokens for q in two[:3]) == pytest.approx(920_000_000_000, abs=3)
    images = [sum(q.image_tokens for q in stage) / sum(q.tokens for q in stage) for stage in (one, two)]
    assert images[1] == pytest.approx(images[0], abs=1e-6)
    assert [round(q.passes, 3) for q in two[:3]] == [1.725] * 3  # 0.8 + 0.1 of 9.2 T over 4.8 T
    assert max(q.passes for q in two) < 4


def test_a_mixture_that_these_sizes_cannot_bear_is_said_and_the_rest_planned() -> None:
    plan = plan_cost(load_recipe("chameleon-7b", ["mix.max_passes=1"]), rates())
    assert plan.mixture is None
    assert "max_passes is 1" in plan.infeasible
    assert plan.data
    console = Console(record=True, width=200)
    console.print(render(plan))
    assert "cannot be made: mix.max_passes is 1" in console.export_text()


def test_one_source_alone() -> None:
    recipe = load_recipe("chameleon-7b")
    plan = plan_cost(recipe, rates(encode=227), "pairs")
    assert value(plan, "encode", "codes") == "2.87 TB", "the design's figure"
    assert value(plan, "encode", "pictures to codes").startswith("1,72")
    assert {line.step for line in plan.data} == {"scan", "encode", "tokenize"}
    assert not plan.training
    with pytest.raises(RecipeError, match="there are pairs, text"):
        plan_cost(recipe, rates(), "pears")


def test_an_encoder_of_another_size_is_reckoned_by_its_flops() -> None:
    small = plan_cost(load_recipe("emoji"), rates(encode=1))
    line = next(x for x in small.data if x.what == "pictures to codes")
    assert "GFLOP each" in line.arithmetic
    per_picture = float(line.arithmetic.split("(")[1].split()[0])
    rate = float(line.arithmetic.split("/ ")[1].split()[0].replace(",", ""))
    assert rate == pytest.approx(550 / per_picture, rel=0.1)


def test_costs_are_hours_times_prices() -> None:
    recipe = load_recipe("chameleon-7b")
    cheap, dear = (plan_cost(recipe, rates(encode=227, device_hour=p)) for p in (1, 3))
    cost = {p: next(x.cost for x in plan.data if x.what == "pictures to codes") for p, plan in ((1, cheap), (3, dear))}
    assert cost[3] == pytest.approx(3 * cost[1])
    assert dear.cost > cheap.cost


def test_the_whole_plan_can_be_shown_with_its_arithmetic_and_rates() -> None:
    console = Console(record=True, width=200)
    console.print(render(plan_cost(load_recipe("chameleon-7b"), load_rates())))
    text = console.export_text()
    assert "1,400,000,000" in text
    assert "1.92 times the 4,800,000,000,000" in text
    assert "not measured" in text, "what was derived is said to be"
    assert "requests that write" in text


def test_a_source_out_of_reach_must_state_its_size(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nsources: [{name: a, type: text, kind: text, path: nowhere}]\n"
        "mix: {tokens: 1000, stages: [{name: one, share: 1, weights: {a: 1}}]}\nfinetune_mix: {sources: []}\n"
    )
    with pytest.raises(SourceError, match="state its size"):
        source_sizes(load_recipe(recipe))
    stated = load_recipe(recipe, ["sources.a.expected.samples=20000", "sources.a.expected.tokens=5"])
    (size,) = source_sizes(stated)
    assert (size.samples, size.items, size.text_tokens, size.basis) == (20_000, 3, 5, "stated")


def test_a_file_that_is_none_of_rates_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"benchmarks\.rates"):
        load_rates(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"device": "x"}')
    with pytest.raises(RecipeError, match="encode: Field required"):
        load_rates(tmp_path / "bad.json")
