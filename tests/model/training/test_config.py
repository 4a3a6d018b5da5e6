"""What a training's and a model's configuration refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from model.training.config import FinetuneConfig, OptimizerConfig, PretrainConfig
from model.transformer.config import TransformerConfig


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        *((TransformerConfig, "kv_heads", x) for x in (0, -2)),
        *((TransformerConfig, "ffn", x) for x in (0, -5)),
        *((TransformerConfig, "norm_eps", x) for x in (0.0, -1.0, float("nan"))),
        *((TransformerConfig, "rope_theta", x) for x in (0.0, -1.0, float("inf"))),
        *((OptimizerConfig, "betas", x) for x in ((1.5, 0.95), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan")))),
        *((OptimizerConfig, "eps", x) for x in (0.0, -1.0, float("inf"))),
        *((OptimizerConfig, "learning_rate", x) for x in (0.0, float("inf"), float("nan"))),
        *((PretrainConfig, "z_loss", x) for x in (-1.0, float("inf"))),
        *((PretrainConfig, "image_weight", x) for x in (0.0, float("inf"))),
        *((PretrainConfig, "skip", x) for x in ([(5, 5)], [(-1, 2)], [(9, 3)])),
    ],
)
def test_values_that_could_only_fail_or_train_to_nothing_are_refused(config: Any, key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        config(**{key: value})
    assert {fault["loc"][0] for fault in refused.value.errors()} == {key}


FAR = {"checkpoint_every": 100, "keep_checkpoints": 2}
NORM = {"output_norm": {"action": "rollback", "window": 1000}, "rollback_steps": 500}
SPIKE = {"loss": {"action": "rollback"}, "rollback_steps": 100}


@pytest.mark.parametrize("config", [PretrainConfig, FinetuneConfig])
def test_a_rollback_to_a_checkpoint_that_may_not_be_kept_is_refused(config: Any) -> None:
    with pytest.raises(ValidationError, match=r"guard.output_norm rolls back by 1499 .*Set keep_checkpoints: 16"):
        config(**FAR, guard=NORM)
    config(**FAR | {"keep_checkpoints": 16}, guard=NORM)
    config(**FAR, keep_every=1000, guard=NORM)
    config(**FAR, guard={**NORM, "output_norm": {"action": "warn"}})
    config(**FAR, guard=SPIKE)  # exactly one checkpoint back
    with pytest.raises(ValidationError, match=r"guard.loss rolls back by 101 .*Set keep_checkpoints: 3"):
        config(**FAR, guard={**SPIKE, "rollback_steps": 101})
    with pytest.raises(ValidationError, match=r"guard.gradients rolls back by 1 "):
        config(keep_checkpoints=1, guard={"gradients": {"action": "rollback"}, "rollback_steps": 1})
