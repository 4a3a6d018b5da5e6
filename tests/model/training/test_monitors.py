from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from infra.errors import StoreError
from infra.storage import Storage
from model.training.monitors import METRICS, TENSORBOARD, MetricsLog, read_metrics


def line(step: int) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "total_tokens": 10 * step}


def test_resuming_drops_what_lies_past_the_checkpoint_and_a_half_written_line(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    log = MetricsLog(store, 0)
    for step in range(1, 6):
        log.write(line(step))
    assert [m["step"] for m in read_metrics(store)] == [1, 2, 3, 4, 5]  # written at once, not at the end
    log.close()
    with (tmp_path / METRICS).open("a") as f:
        f.write('{"step": 6, "lo')
    again = MetricsLog(store, 3)
    assert again.total_tokens == 30
    again.write(line(4) | {"held_out": {"pictures": {"text": 2.0}}})
    again.close()
    assert [m["step"] for m in read_metrics(store)] == [1, 2, 3, 4]
    assert list((tmp_path / TENSORBOARD).iterdir())


def test_where_nothing_can_be_appended_it_is_uploaded_at_checkpoints() -> None:
    fsspec.filesystem("memory").mkdirs("/metrics", exist_ok=True)
    store = Storage("memory://metrics")
    log = MetricsLog(store, 0)
    log.write(line(1))
    with pytest.raises(StoreError):
        read_metrics(store)
    log.keep()
    assert [m["step"] for m in read_metrics(store)] == [1]
    log.close()
    again = MetricsLog(store, 1)
    again.write(line(2))
    again.close()
    assert [m["step"] for m in read_metrics(store)] == [1, 2]
