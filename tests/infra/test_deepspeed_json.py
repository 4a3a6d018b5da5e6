from __future__ import annotations

import pytest

from infra.deepspeed_json import OURS, TOP_LEVEL, check_keys, deepspeed_json
from infra.errors import RecipeError
from infra.settings import ResourcesConfig


def made(**resources: object) -> dict[str, object]:
    return deepspeed_json(
        ResourcesConfig.model_validate(resources), bf16=True, world=4, micro_batch=2, accumulation=3, clip=1.0
    )


def test_the_batch_adds_up_and_precision_and_stage_are_written() -> None:
    config = made(zero_stage=2)
    assert config["train_batch_size"] == 24
    assert config["zero_optimization"] == {"stage": 2}
    assert config["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert config.keys() <= TOP_LEVEL


def test_further_sections_are_laid_over() -> None:
    offload = {"offload_optimizer": {"device": "cpu"}}
    config = made(deepspeed={"zero_optimization": offload, "wall_clock_breakdown": True})
    assert config["zero_optimization"] == {"stage": 1, **offload}
    assert config["zero_force_ds_cpu_optimizer"] is False  # torch's AdamW would be refused
    assert config["wall_clock_breakdown"] is True


def test_a_misspelt_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match="did you mean 'zero_optimization'"):
        check_keys({"zero_optimisation": {}})


@pytest.mark.parametrize("key", OURS)
def test_what_the_recipe_decides_is_refused_with_the_place_to_set_it(key: str) -> None:
    with pytest.raises(RecipeError, match="set (pretrain|resources)"):
        check_keys({key: 1})


def test_the_zero_stage_has_one_place() -> None:
    with pytest.raises(RecipeError, match=r"resources\.zero_stage"):
        made(deepspeed={"zero_optimization": {"stage": 3}})


def test_gradients_add_up_in_float32_where_there_are_several() -> None:
    assert [made(zero_stage=s).get("data_types") for s in (0, 1, 2, 3)] == [None, *[{"grad_accum_dtype": "fp32"}] * 3]
    assert [made(zero_stage=s).get("communication_data_type") for s in (0, 1, 2, 3)] == [None, "fp32", None, None]
    other = made(deepspeed={"data_types": {"grad_accum_dtype": "bf16"}})
    assert other["data_types"] == {"grad_accum_dtype": "bf16"}


@pytest.mark.parametrize(
    ("stage", "given", "says"),
    [
        (0, {"grad_accum_dtype": "fp32"}, "runs in bf16, without ZeRO"),
        (1, {"grad_accum_dtype": "fp16"}, "expected"),
        (1, "fp32", "expected"),
    ],
)
def test_sums_that_deepspeed_has_no_optimizer_for_are_refused(stage: int, given: object, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        made(zero_stage=stage, deepspeed={"data_types": given})


def test_deepspeed_knows_every_key() -> None:
    """A key that DeepSpeed does not read would be ignored in silence: its sources must name each."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    text = "\n".join(p.read_text(encoding="utf-8") for p in Path(spec.origin).parent.rglob("*.py"))
    assert [key for key in sorted(TOP_LEVEL) if f'"{key}"' not in text and f"'{key}'" not in text] == []
