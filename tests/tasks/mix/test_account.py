"""The ledger of ``mix``: what the plan uses, and why it does not use the rest."""

from __future__ import annotations

from collections import Counter

from infra.store.commit import load_step
from infra.store.plan import Plan
from tasks.context import StepContext
from tests.tasks.mix.reading import Contexts, Documents, build, folders, spans_of


def test_the_ledger_counts_the_documents_that_are_used(built: tuple[StepContext, Plan], known: Documents) -> None:
    context, plan = built
    used = {(s["part"], s["row"]) for packed in folders(plan) for s in spans_of(context.store(), packed)}
    step = load_step(context.store())
    assert step is not None
    for source in {d.source for d in known.values()}:
        own = {key for key, d in known.items() if d.source == source}
        assert step.rows[source].out == len(own & used)
        lost = [known[key] for key in own - used]
        long = sum(d.source == "chat" and not d.fits and not d.held_out for d in lost)
        assert step.rows[source].filtered.get("too-long", 0) == long
        assert step.rows[source].filtered.get("not-planned", 0) == len(lost) - long


def test_conditions_leave_documents_out_and_the_ledger_says_why(context_of: Contexts, known: Documents) -> None:
    where = {
        "chat": {"short": "tokens <= 64", "spoken": "language IN ('en', 'de')"},
        "quality": {"beautiful": "score_aesthetic >= 0.5 AND width > 120"},
    }
    context = context_of(10, where=where, tokens=200_000, scorers=["aesthetic"])
    plan = build(context, workers=0)
    first = {key: d.sample_id[0] for key, d in known.items()}
    good = {
        "chat": lambda k: known[k].fits and first[k] % 3 < 2,
        "quality": lambda k: first[k] % 5 > 0 and first[k] / 256 >= 0.5 and first[k] > 20,
    }
    used = Counter[str]()
    for stage in plan.stages:
        for span in spans_of(context.store(), stage):
            if span["source"] in good:
                used[span["source"]] += 1
                assert good[span["source"]]((span["part"], span["row"]))
    assert used["chat"] > 100
    assert used["quality"] > 100
    step = load_step(context.store())
    assert step is not None
    quality = [k for k, d in known.items() if d.source == "quality" and not d.held_out]
    bad = sum(not good["quality"](k) for k in quality)
    assert step.rows["quality"].filtered["beautiful"] == bad > 0
    assert all(rows.balance == 0 for rows in step.rows.values())
    # Fine-tuning has conditions of its own: what pre-training leaves out may be used there.
    assert sum(step.rows["chat"].filtered.values()) < sum(d.source == "chat" for d in known.values()) / 3


def test_fine_tuning_has_conditions_of_its_own(context_of: Contexts, known: Documents) -> None:
    context = context_of(11, finetune={"where": {"chat": {"licensed": "licence = 'CC0'"}}})
    plan = build(context, workers=0)
    for epoch in plan.finetune:
        for span in spans_of(context.store(), epoch):
            assert known[span["part"], span["row"]].sample_id[0] % 2 == 0
    step = load_step(context.store())
    assert step is not None
    assert step.rows["chat"].filtered["licensed"] > 0
