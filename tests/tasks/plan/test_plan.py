from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from infra.errors import RecipeError, SourceError
from tasks.plan.cost import CostPlan, plan_cost
from tasks.plan.data import source_sizes, supplies
from tasks.plan.rates import Rate, Rates, load_rates
from tasks.plan.render import render
from tasks.plan.training import Memory, pretrain_steps, training_lines
from tasks.recipe import load_recipe


def rates(**values: float) -> Rates:
    """Rates of 1 but for those named."""
    names = [n for n in Rates.model_fields if n not in ("device", "train_utilisation_of")]
    return Rates(
        device="A100",
        **{n: Rate(value=values.get(n, 1.0), unit="u", measured=False, basis="for a test") for n in names},
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
    # Stage 1 as the paper has it: 2.9 T, 1.5 T and 0.4 T tokens, <s> and </s> among them.
    supply = supplies(recipe, plan.sources)
    assert [supply[n].tokens for n in ("text", "pairs", "interleaved")] == [29 * 10**11, 15 * 10**11, 4 * 10**11]
    pictures = sum(s.pictures for s in plan.sources)
    assert value(plan, "encode", "codes") == f"{pictures * 2048 / 1e12:.3g} TB"
    assert value(plan, "pretrain", "parameters") == "7,013,158,912"
    assert value(plan, "mix", "sequences") == "19.6 TB"  # 18.4 TB of ids, 1.15 TB of starts
    hours = float(value(plan, "pretrain", "training").split()[0].replace(",", ""))
    assert hours == pytest.approx(856_481, rel=0.02), "the paper's A100-hours at the utilisation derived from them"


FACTS = {
    # workers, tokens/s and GPU, GPU-hours, MFU by full attention with the embedding counted as work
    "chameleon-7b": (1024, 2984, 856_481, 0.464),
    "chameleon-34b": (3072, 597, 4_282_407, 0.431),
}

FLOPS = {
    # a layer's matrices, layers, the output matrix; attention over 4,096 positions: 12 · layers · width · length
    "chameleon-7b": 6 * ((4 * 4096**2 + 3 * 4096 * 11008) * 32 + 65536 * 4096) + 12 * 32 * 4096 * 4096,
    "chameleon-34b": 6 * ((2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 22016) * 48 + 65536 * 8192)
    + 12 * 48 * 8192 * 4096,
}
"""Training FLOPs a token, written out: 46.9 and 221.9 billion."""


@pytest.mark.parametrize("name", FACTS)
def test_the_flops_of_a_token_are_the_written_out_ones(name: str) -> None:
    recipe = load_recipe(name)
    assert FLOPS[name] == {"chameleon-7b": 46_909_095_936, "chameleon-34b": 221_861_904_384}[name]
    # The count takes norms' weights for matrices, too: 4 in 100,000.
    ours = recipe.model.training_flops(recipe.vocabulary.size, recipe.mix.sequence_length)
    assert ours == pytest.approx(FLOPS[name], rel=1e-4)
    _, speed, _, utilisation = FACTS[name]
    embedding = 6 * recipe.vocabulary.size * recipe.model.dim
    assert (ours + embedding) * speed / 312e12 == pytest.approx(utilisation, rel=0.005)


@pytest.mark.parametrize("name", FACTS)
def test_what_calumma_plan_prints_are_the_papers_hours(name: str) -> None:
    """Within 0.1%, by the rates that come with Calumma."""
    recipe, shipped = load_recipe(name), load_rates()
    workers, speed, gpu_hours, _ = FACTS[name]
    assert recipe.resources.train_workers == workers
    assert recipe.mix.tokens / speed / 3600 == pytest.approx(gpu_hours, rel=0.002)
    assert shipped.share(name) == pytest.approx(FLOPS[name] * speed / 312e12, rel=0.002)
    plan = plan_cost(recipe, shipped)
    assert float(value(plan, "pretrain", "training").split()[0].replace(",", "")) == pytest.approx(gpu_hours, rel=0.001)
    end = value(plan, "pretrain", "from beginning to end")
    assert float(end.split()[0].replace(",", "")) == pytest.approx(gpu_hours / workers, rel=0.001)


def test_a_model_that_is_imported_and_not_trained_costs_no_training() -> None:
    imported = load_recipe("chameleon-7b", ["model_import.path=elsewhere"])
    assert value(plan_cost(imported, rates()), "pretrain", "training") == "none: imported"
    assert {line.what for line in training_lines(imported, rates())} == {"parameters", "training"}
    trained = load_recipe("chameleon-7b", ["model_import.path=elsewhere", "model_import.train=true"])
    whole = load_recipe("chameleon-7b")
    assert training_lines(trained, rates()) == training_lines(whole, rates())


def test_steps_follow_the_ramp_of_the_batch_and_what_is_passed_over() -> None:
    assert pretrain_steps(load_recipe("chameleon-7b")) == 1_096_727
    half = 2048 * 256 * 1000
    ramp = f"pretrain.batch_ramp=[{{until: {half}, batch: 256}}]"
    assert pretrain_steps(load_recipe("chameleon-7b", [ramp])) == 1_096_727 + 2048 * 1000 - 256 * 1000
    assert pretrain_steps(load_recipe("chameleon-7b", [f"pretrain.skip=[[0, {half}]]"])) == 1_096_727 - 256 * 1000
    line = next(x for x in training_lines(load_recipe("chameleon-7b", [ramp]), rates()) if x.what == "steps")
    assert "256 up to 524,288,000, then 2,048 sequences" in line.arithmetic


def test_a_warm_up_that_training_would_refuse_is_said_before() -> None:
    short = plan_cost(load_recipe("emoji", ["pretrain.schedule.warmup_steps=4000"]), rates())
    assert value(short, "pretrain", "warm-up") == "too long: it will be refused"
    assert not any(line.what == "warm-up" for line in plan_cost(load_recipe("emoji"), rates()).training)


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
    assert value(large, "pretrain", "memory of a node") == "2.15 GB"  # the output matrix in float32
    assert value(seven, "pretrain", "memory of a node") == "1.07 GB"
    few = plan_cost(load_recipe("chameleon-34b", ["resources.train_workers=64"]), rates())
    assert value(few, "pretrain", "memory of a node") == "51.4 GB"  # 8 of 64 workers' 12 B a parameter


def test_memory_by_the_stated_formula() -> None:
    recipe = load_recipe("chameleon-7b", ["resources.train_workers=64", "resources.micro_batch=1"])
    p, tokens = 7_013_158_912, 4096

    def of(**changes: object) -> Memory:
        resources = recipe.resources.model_copy(update=changes)
        return Memory.of(recipe.model_copy(update={"resources": resources}))

    stages = [of(zero_stage=stage, activation_checkpointing="full") for stage in (0, 1, 2, 3)]
    assert [m.weights for m in stages] == [2 * p, 2 * p, 2 * p, 2 * p / 64]
    assert [m.optimizer for m in stages] == [12 * p / 64] * 4
    layer = 2 * tokens * (11 * 4096 + 4 * 4096 + 4 * 11008)
    assert stages[0].activations == 2 * tokens * 32 * 4096 + layer
    assert of(activation_checkpointing="none").activations == 32 * layer
    assert stages[0].activations < of(activation_checkpointing="selective").activations < 32 * layer
    plain = of(precision="fp32", zero_stage=0)
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * p, 4 * p, 8 * p)
    assert (plain.output, stages[0].output) == (4 * 65536 * 4096, 6 * 65536 * 4096)
    assert of(precision="auto") == of(precision="bf16"), "on accelerators"
    assert of(precision="auto", accelerator=None).weights == 2 * of(precision="bf16").weights


def test_memory_of_summed_gradients_and_buckets() -> None:
    """2,048 sequences a step on 64 workers are 32 micro-batches, whose gradients add up in float32; on 2,048 one."""
    p = 7_013_158_912

    def of(workers: int, **changes: object) -> Memory:
        recipe = load_recipe("chameleon-7b", [f"resources.train_workers={workers}", "resources.micro_batch=1"])
        resources = recipe.resources.model_copy(update=changes)
        return Memory.of(recipe.model_copy(update={"resources": resources}))

    assert [of(64, zero_stage=stage).gradients for stage in (0, 1, 2, 3)] == [2 * p, 4 * p, 4 * p / 64, 4 * p / 64]
    assert [of(2048, zero_stage=stage).gradients for stage in (0, 1)] == [2 * p, 2 * p]
    assert of(64, zero_stage=1, deepspeed={"data_types": {"grad_accum_dtype": "bf16"}}).gradients == 2 * p
    assert [of(64, zero_stage=stage).buckets for stage in (0, 1, 2, 3)] == [0, 2e9, 1e9, 3e9]
    given = {"zero_optimization": {"reduce_bucket_size": 2e8, "stage3_max_live_parameters": 1e8}}
    assert of(2048, zero_stage=3, deepspeed=given).buckets == 2 * 3e8
    assert of(64, zero_stage=2, deepspeed={"communication_data_type": "fp32"}).buckets == 2e9


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
    assert "train_utilisation_of.chameleon-34b" in text
    assert "Fine-tuning and evaluation are not reckoned" in text
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
