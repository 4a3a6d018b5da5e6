"""DeepSpeed's JSON, from the resources and the batch. DeepSpeed ignores unknown top-level keys; we refuse them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from infra.errors import RecipeError
from infra.settings import ResourcesConfig

TOP_LEVEL = frozenset(
    (
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        *("zero_optimization", "bf16", "fp16", "torch_autocast", "data_types", "communication_data_type"),
        *("prescale_gradients", "gradient_predivide_factor", "activation_checkpointing", "checkpoint", "compile"),
        *(
            "steps_per_print",
            "wall_clock_breakdown",
            "memory_breakdown",
            "dump_state",
            "flops_profiler",
            "comms_logger",
        ),
        *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio", "timers", "disable_python_gc"),
    )
)
"""The keys of DeepSpeed 0.19's configuration that this project writes or lets through. Optimizer, scheduler and
monitors are missing on purpose: they are our own, so that one description of a run exists."""

OURS = {
    "train_batch_size": "pretrain.batch or finetune.batch",
    "train_micro_batch_size_per_gpu": "resources.micro_batch",
    "gradient_accumulation_steps": "resources.micro_batch",
    "gradient_clipping": "pretrain.optimizer.clip or finetune.optimizer.clip",
    "bf16": "resources.precision",
    "fp16": "resources.precision",
}
"""Keys that follow from the recipe, and where to set them instead."""


def deepspeed_json(
    resources: ResourcesConfig, *, bf16: bool, world: int, micro_batch: int, accumulation: int, clip: float
) -> dict[str, Any]:
    """The configuration given to ``deepspeed.initialize``; ``bf16`` is what ``resources.precision`` came to.

    ``resources.deepspeed`` is laid over it, section by section, for what a cluster needs (offloading, bucket sizes).

    In bf16 with several micro-batches and ZeRO, gradients are added up in float32: in bf16, what a micro-batch adds is
    soon less than half a step of the sum, and a thousand of them lose a tenth of a norm's gradient. At stage 1 they are
    averaged over the workers in float32, too, which happens once a step; at stages 2 and 3, where it happens after each
    micro-batch, only with ``communication_data_type: fp32``. Without ZeRO DeepSpeed cannot do it.

    Raises:
        RecipeError: a key in ``resources.deepspeed`` is unknown, is decided elsewhere in the recipe, or does not work.
    """
    config: dict[str, Any] = {
        "train_batch_size": world * micro_batch * accumulation,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "zero_optimization": {"stage": resources.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 62,
    }
    if bf16:
        # Without check_grad_overflow a bf16 run would step on non-finite gradients.
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if accumulation > 1 and resources.zero_stage:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
            if resources.zero_stage == 1:
                config["communication_data_type"] = "fp32"
    check_keys(resources.deepspeed)
    for key, value in resources.deepspeed.items():
        section = config.get(key)
        config[key] = {**section, **value} if isinstance(section, dict) and isinstance(value, Mapping) else value
    zero = config["zero_optimization"]
    _check_zero(zero, resources)
    _check_data_types(resources, bf16)
    if _device(zero, "offload_optimizer") == "cpu":
        # Else DeepSpeed refuses any optimizer but its own; torch's AdamW is fused on CPUs as well.
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    return config


def _device(zero: Mapping[str, Any], key: str) -> Any:
    return zero[key].get("device") if isinstance(zero.get(key), Mapping) else None


def _check_data_types(resources: ResourcesConfig, bf16: bool) -> None:
    """RecipeError for sums of gradients that DeepSpeed has no optimizer for."""
    if "data_types" not in resources.deepspeed:
        return
    where, given = "resources.deepspeed.data_types", resources.deepspeed["data_types"]
    known = ("fp32", "bf16")
    if not isinstance(given, Mapping) or set(given) != {"grad_accum_dtype"} or given["grad_accum_dtype"] not in known:
        raise RecipeError(f"{where}: {given!r}; expected {{grad_accum_dtype: fp32}} or {{grad_accum_dtype: bf16}}")
    if not bf16 or not resources.zero_stage:
        own = "bf16, without ZeRO" if bf16 else "fp32"
        raise RecipeError(
            f"{where}.grad_accum_dtype: {given['grad_accum_dtype']}; training runs in {own}, where gradients are added "
            "up in that precision only. Leave the key out, or set resources.precision: bf16 and a zero_stage of 1 to 3."
        )


def _check_zero(zero: Mapping[str, Any], resources: ResourcesConfig) -> None:
    """RecipeError for what would take the guard or the checkpoints out of use."""
    where = "resources.deepspeed.zero_optimization"
    if zero.get("stage") != resources.zero_stage:
        raise RecipeError(f"{where}.stage: set resources.zero_stage instead")
    if not zero.get("compute_grad_norm", True):
        raise RecipeError(f"{where}.compute_grad_norm: false; without the norm no gradient is clipped or checked")
    for key in ("offload_optimizer", "offload_param"):
        if _device(zero, key) == "nvme":
            raise RecipeError(f"{where}.{key}.device: nvme; checkpoints are made of what is in memory. Set it to cpu.")
    for key in ("zero_hpz_partition_size", "mics_shard_size"):
        if zero.get(key, 1) > 1:
            raise RecipeError(f"{where}.{key}: {zero[key]}; checkpoints expect parameters in one part for each worker")


def check_keys(extra: Mapping[str, Any]) -> None:
    """RecipeError for a top-level key that DeepSpeed would ignore, or that the recipe decides elsewhere."""
    for key in extra:
        if key in OURS:
            raise RecipeError(f"resources.deepspeed.{key}: set {OURS[key]} instead")
        if key not in TOP_LEVEL:
            near = difflib.get_close_matches(key, TOP_LEVEL, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(TOP_LEVEL - OURS.keys()))}"
            raise RecipeError(f"resources.deepspeed.{key}: unknown to DeepSpeed, which would ignore it; {hint}")
