from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest

from infra.errors import StoreError
from infra.storage import Storage
from model.training.monitors import METRICS, MetricsLog, flat, read_metrics
from model.training.watch.sinks import TENSORBOARD


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
    again.write(line(4) | {"held_out": {"pictures": {"text": 2.0}}})
    again.close()
    assert [m["step"] for m in read_metrics(store)] == [1, 2, 3, 4]
    assert list((tmp_path / TENSORBOARD).iterdir())


def test_where_nothing_can_be_appended_it_is_uploaded_at_checkpoints(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fsspec.filesystem("memory").mkdirs("/metrics", exist_ok=True)
    store = Storage("memory://metrics")
    log = MetricsLog(store, 0)
    log.write(line(1))
    with pytest.raises(StoreError):
        read_metrics(store)
    log.keep()
    assert [m["step"] for m in read_metrics(store)] == [1]
    log.write(line(2))
    log.write(line(3))
    log.close()
    again = MetricsLog(store, 1)
    again.write(line(2))
    again.close()
    assert [m["step"] for m in read_metrics(store)] == [1, 2]
    store.fetch((f.name for f in store.find(TENSORBOARD)), tmp_path)
    events = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2], "the second start took back what came after 1"


def test_pictures_and_figures_without_sources_go_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(Storage(tmp_path), 0)
    log.write({"step": 1, "l1": 0.5, "held_out": {"psnr": 20.5}})
    log.write({"step": 2, "l1": 0.4, "held_out": {"emoji": {"text": 2.0, "image": 3.0}}})
    log.show("held_out/pictures", np.full((4, 6, 3), 128, np.uint8), 2)
    log.close()
    board = EventAccumulator(str(tmp_path / TENSORBOARD))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {
        *("train/l1", "held_out/psnr", "held_out/emoji/text", "held_out/emoji/image"),
    }
    (picture,) = board.Images("held_out/pictures")
    assert (picture.step, picture.width, picture.height) == (2, 6, 4)


def test_lists_and_mappings_become_names() -> None:
    found = dict(flat({"step": 3, "stage": "one", "loss": 2, "norms": [1.5, 2.5], "ratio": {"all": 0.1}}))
    assert found == {"train/loss": 2.0, "train/norms/00": 1.5, "train/norms/01": 2.5, "train/ratio/all": 0.1}
