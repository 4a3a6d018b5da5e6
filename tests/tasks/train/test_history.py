from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.storage import Storage
from tasks.train import live
from tasks.train.curves import training_plots
from tasks.train.history import History
from tasks.train.live import LiveCurves, curves_file, draw_live


def line(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "stage": "one" if step < 6 else "two", "loss_text": 1 / step, **more}


@given(st.integers(1, 400), st.integers(2, 20))
def test_a_long_course_is_kept_in_few_points_and_loses_no_extreme(steps: int, most: int) -> None:
    values = [math.sin(step) for step in range(1, steps + 1)]
    found = History(({"step": i, "grad_norm": v} for i, v in enumerate(values, 1)), bins=most).curve("train/grad_norm")
    assert len(found) <= most
    assert found[-1].step == steps
    assert [p.step for p in found] == sorted({p.step for p in found})
    assert min(p.low for p in found) == min(values)
    assert max(p.high for p in found) == max(values)
    assert all(p.low <= p.mean + 1e-9 and p.mean <= p.high + 1e-9 for p in found)


def test_a_training_that_went_back_goes_on_from_there() -> None:
    history = History(line(step) for step in range(1, 9))
    for step in (4, 5):
        history.add(line(step, loss_text=9.0))
    assert [(p.step, p.mean) for p in history.curve("train/loss_text")] == [
        *((1, 1), (2, 1 / 2), (3, 1 / 3)),
        *((4, 9), (5, 9)),
    ]
    assert history.stages() == {"one": (1, 5)}


def test_sparse_figures_layers_and_what_is_not_a_number() -> None:
    history = History(
        line(step, residual_norms=[float(i) for i in range(33)], output_norm=math.nan)
        | ({"held_out": {"web": {"text": 2.0}}} if step == 7 else {})
        for step in range(1, 9)
    )
    assert [p.step for p in history.curve("held_out/web/text")] == [7]
    assert history.curve("train/output_norm") == []
    layers = [name for name in history.names() if "residual_norms" in name]
    assert [history.curve(name)[0].mean for name in layers] == [0, 6, 13, 19, 26, 32]
    assert history.stages() == {"one": (1, 5), "two": (6, 8)}
    again = History.of(json.loads(json.dumps(history.state_dict())))
    assert again.curve("train/loss_text") == [pytest.approx(p, rel=1e-5) for p in history.curve("train/loss_text")]
    again.add(line(9))
    assert again.curve("train/loss_text")[-1].step == 9


def test_only_what_was_seen_is_plotted() -> None:
    old = training_plots(History(line(step, loss_image=2.0) for step in range(1, 4)))
    assert [(p.title, [x.label for x in p.lines]) for p in old] == [("Training loss by modality", ["text", "image"])]
    more = {"held_out": {"b": {"text": 1.0}, "a": {"text": 1.0, "image": 2.0}}, "update_ratio": {"all": 1e-3}}
    plots = {p.title: p for p in training_plots(History([line(1, **more)]), {"b": "#111111", "a": "#222222"})}
    assert [(x.label, x.colour) for x in plots["Held-out loss, text"].lines] == [("b", "#111111"), ("a", "#222222")]
    assert [x.label for x in plots["Held-out loss, pictures"].lines] == ["a"]
    assert [x.label for x in plots["Update over parameters"].lines] == ["all"]


def test_the_points_are_kept_now_and_then_with_those_of_earlier_attempts(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("tasks.train.live.time.monotonic", lambda: now[0])
    workdir = Storage(tmp_path)
    store = workdir.sub("pretrain/abc")
    store.put("metrics.jsonl", "".join(json.dumps(line(i)) + "\n" for i in (1, 2, 3)).encode())
    hears = LiveCurves(workdir, "job", store, ["web"])
    seen = []
    for step in range(3, 7):
        hears(line(step))
        content = json.loads(workdir.get(curves_file("job")))
        seen.append([p.step for p in History.of(content["history"]).curve("train/loss_text")])
        now[0] += 0.6 * live.INTERVAL_S
    assert seen == [[1, 2, 3], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    assert draw_live(workdir.get(curves_file("job"))).startswith(b"\x89PNG")
