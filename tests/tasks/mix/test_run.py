from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from infra.errors import RecipeError, StoreError
from infra.store.commit import done_parts, load_step
from infra.store.plan import INTERVALS, Plan, load_plan
from infra.store.sequences import SequenceReader
from infra.store.tables import read_table
from model.data.account import Account
from model.data.loader import SequenceLoader, held_out, held_out_sources
from model.vocabulary import FIRST_IMAGE_CODE, PAD
from tasks.context import StepContext
from tasks.documents.captions import image_first, realise
from tasks.documents.ids import unpack_bits
from tasks.mix.documents import RowGroup
from tests.tasks.mix.reading import Contexts, Documents, build, folders, rows_of, spans_of


def test_the_plan_comes_back_and_the_ledger_closes(built: tuple[StepContext, Plan], known: Documents) -> None:
    context, plan = built
    assert load_plan(context.store()) == plan
    step = load_step(context.store())
    assert step is not None
    for source in ("emoji", "text", "stories", "quality", "chat"):
        assert step.rows[source].entered == sum(d.source == source for d in known.values()) == 450
        assert step.rows[source].balance == 0
    assert step.rows["stages/stage-1"].out == plan.stages[0].documents
    table = read_table(context.store().get("plan.parquet"), INTERVALS, "plan")
    assert table.num_rows == 3 + 5 + 2 * 2
    assert [s["name"] for s in step.facts["stages"]] == ["stage-1", "stage-2"]


def test_every_planned_occurrence_is_packed_exactly_once(built: tuple[StepContext, Plan], known: Documents) -> None:
    """Tokens equal the document's, stretch by stretch, and nothing else lies in the sequences."""
    context, plan = built
    store, rows = context.store(), rows_of(context)

    def ids(part: str, row: int, occurrence: int) -> np.ndarray:
        return realise(rows[part][row], occurrence, 3)

    for packed in folders(plan):
        reader = SequenceReader(store, packed.folder)
        found: dict[tuple[str, int, int], list[tuple[int, int]]] = {}
        covered = Counter[int]()
        for span in spans_of(store, packed):
            use = (span["part"], span["row"], span["occurrence"])
            first, length, offset = span["first_token"], span["length"], span["offset"]
            found.setdefault(use, []).append((first, length))
            tokens, starts, loss = reader.sequence(span["sequence"])
            np.testing.assert_array_equal(tokens[offset : offset + length], ids(*use)[first : first + length])
            assert starts[offset]
            assert not starts[offset + 1 : offset + length].any()
            if loss is not None:
                row = rows[use[0]][use[1]]
                bits = unpack_bits(row["loss"], row["lengths"][0])
                np.testing.assert_array_equal(loss[offset : offset + length], bits[first : first + length])
            covered[span["sequence"]] += length
        for sequence in range(packed.sequences):
            tokens, starts, _ = reader.sequence(sequence)
            assert int((tokens != PAD).sum()) == covered[sequence]
            assert starts.sum() == sum(s["sequence"] == sequence for s in reader.spans(sequence // 200).to_pylist()) + (
                covered[sequence] < 64
            )
        if packed.kind == "held-out":
            continue
        for use, stretches in found.items():
            stretches.sort()
            assert stretches[0][0] == 0
            assert all(a + n == b for (a, n), (b, _) in pairwise(stretches))
            assert sum(n for _, n in stretches) == len(ids(*use))
            assert len(stretches) == 1 or len(ids(*use)) > 64  # what fits is never cut
        assert len(found) == packed.documents == sum(i.stop - i.start for i in packed.intervals)
        assert packed.split_documents == sum(len(s) > 1 for s in found.values())


def test_no_picture_is_cut_and_long_documents_are_really_there(built: tuple[StepContext, Plan]) -> None:
    context, plan = built
    vocabulary = context.recipe.vocabulary
    assert plan.stages[0].split_documents > 50
    pictures = 0
    for packed in folders(plan):
        assert packed.cut_pictures == 0
        reader = SequenceReader(context.store(), packed.folder)
        for sequence in range(len(reader)):
            tokens, _, _ = reader.sequence(sequence)
            begins, ends = np.flatnonzero(tokens == vocabulary.boi), np.flatnonzero(tokens == vocabulary.eoi)
            np.testing.assert_array_equal(ends - begins, 17)
            pictures += len(begins)
    assert pictures > 500


def test_quotas_are_met_within_a_document_and_counts_are_true(
    built: tuple[StepContext, Plan], known: Documents
) -> None:
    _, plan = built
    assert sum(i.quota for stage in plan.stages for i in stage.intervals) == 60_000
    assert [i.quota for i in plan.stages[0].intervals] == [24_000, 14_400, 9_600]
    assert {i.stream: i.quota for i in plan.stages[1].intervals} == {
        **{"emoji": 3000, "text": 1800, "stories": 1200},
        **{"quality": 3000, "chat": 3000},
    }
    for stage in plan.stages:
        for i in stage.intervals:
            longest = max(max(d.lengths) for d in known.values() if d.source == i.stream)
            assert 0 <= i.counted - i.quota < longest  # one document of the source
            assert i.counted == i.tokens == sum(stage.tokens[i.stream].values())
            assert i.image_tokens == stage.tokens[i.stream]["image"]
        used = sum(i.tokens for i in stage.intervals)
        assert stage.padding == stage.sequences * 64 - used
        assert stage.fill == used / (stage.sequences * 64)
        assert stage.fill > 0.88  # pairs of 21 to 31 tokens and little that is short; benchmarks measure real lengths
    for earlier, later in zip(plan.stages[0].intervals, plan.stages[1].intervals, strict=False):
        assert (earlier.stream, earlier.stop) == (later.stream, later.start)


def test_held_out_documents_are_never_trained_on(built: tuple[StepContext, Plan], known: Documents) -> None:
    context, plan = built
    for packed in folders(plan):
        for span in spans_of(context.store(), packed):
            assert known[span["part"], span["row"]].held_out == (packed.kind == "held-out")
    for source, packed in plan.held_out.items():
        assert 0 < packed.sequences <= 4
        assert {s["source"] for s in spans_of(context.store(), packed)} == {source}
    pairs = Counter((s["part"], s["row"]) for s in spans_of(context.store(), plan.held_out["emoji"]))
    assert 2 in pairs.values()  # both orders
    assert held_out_sources(context.store()) == sorted(plan.held_out)
    assert len(list(held_out(context.store(), "emoji", batch=1))) == plan.held_out["emoji"].sequences


def test_pairs_turn_round_from_use_to_use(workdir: Path, context_of: Contexts) -> None:
    context = context_of(1, tokens=200_000)
    plan = build(context, workers=0)
    by_document: dict[tuple[str, int], dict[int, bool]] = {}
    reader = SequenceReader(context.store(), plan.stages[0].folder)
    for span in spans_of(context.store(), plan.stages[0]):
        if span["source"] == "emoji":
            tokens, _, _ = reader.sequence(span["sequence"])
            first = tokens[span["offset"] + 1] == context.recipe.vocabulary.boi
            by_document.setdefault((span["part"], span["row"]), {})[span["occurrence"]] = bool(first)
    assert max(len(uses) for uses in by_document.values()) >= 5
    for uses in by_document.values():
        assert sorted(uses) == list(range(len(uses)))  # all of one pass before any of the next
        assert all(uses[k] != uses[k + 1] for k in range(len(uses) - 1))
    firsts = sum(uses[0] for uses in by_document.values())
    assert abs(firsts - len(by_document) / 2) < 3 * np.sqrt(len(by_document) / 4)
    assert image_first(bytes(16), 0, 3) in (True, False)


def test_fine_tuning_is_balanced_by_answer_tokens(built: tuple[StepContext, Plan], known: Documents) -> None:
    context, plan = built
    chat = [d for d in known.values() if d.source == "chat" and not d.held_out]
    fits = [d for d in chat if d.fits]
    total = sum(d.answer_tokens for d in fits)
    assert plan.finetune[0].left_out == len(chat) - len(fits) > 0
    natural = sum(d.answer_tokens for d in fits if d.category == "text") / total
    for epoch in plan.finetune:
        shares = {i.stream: i.counted / sum(j.counted for j in epoch.intervals) for i in epoch.intervals}
        assert shares["image-generation"] == pytest.approx(0.5 / (0.5 + natural), abs=0.02)
        reader = SequenceReader(context.store(), epoch.folder)
        learnt = sum(int(loss.sum()) for i in range(len(reader)) if (loss := reader.sequence(i)[2]) is not None)
        assert learnt == sum(i.counted for i in epoch.intervals)
    starts = {i.stream: i.stop for i in plan.finetune[0].intervals}
    assert {i.stream: i.start for i in plan.finetune[1].intervals} == starts


def test_natural_shares_are_one_pass_an_epoch(context_of: Contexts) -> None:
    plan = build(context_of(2, finetune={"weights": {}, "epochs": 3}), workers=0)
    for number, epoch in enumerate(plan.finetune):
        for i in epoch.intervals:
            assert (i.start, i.stop) == (number * i.per_pass, (number + 1) * i.per_pass)


def test_a_category_of_weight_nought_is_left_out_and_a_wrong_one_refused(context_of: Contexts) -> None:
    plan = build(context_of(3, finetune={"weights": {"text": 0}}), workers=0)
    assert [i.stream for i in plan.finetune[0].intervals] == ["image-generation"]
    with pytest.raises(RecipeError, match="did you mean 'image-generation'"):
        build(context_of(4, finetune={"weights": {"image-generatoin": 1}}), workers=0)


def test_the_image_share_is_held(context_of: Contexts) -> None:
    stages = [
        {"name": "one", "share": 0.8, "weights": {"emoji": 0.5, "text": 0.5}},
        {"name": "two", "share": 0.2, "weights": {"quality": 1, "chat": 1}, "earlier": 0.5, "hold_image_share": True},
    ]
    one, two = build(context_of(5, stages=stages, tokens=200_000), workers=0).stages
    assert two.image_share == pytest.approx(one.image_share, abs=0.01)
    quotas = {i.stream: i.quota for i in two.intervals}
    assert quotas["quality"] != quotas["chat"]


def test_slices_hold_every_source_in_proportion(built: tuple[StepContext, Plan], known: Documents) -> None:
    """To within a document at either border: the slices of one share each."""
    context, plan = built
    stage = plan.stages[0]
    assert len(stage.slices) == 4
    spans = spans_of(context.store(), stage)
    borders = np.cumsum([0, *stage.slices])
    for interval in stage.intervals:
        longest = max(max(d.lengths) for d in known.values() if d.source == interval.stream)
        for a, b in pairwise(borders):
            inside = [s for s in spans if a <= s["sequence"] < b and s["source"] == interval.stream]
            assert abs(sum(s["length"] for s in inside) - interval.tokens / 4) <= longest


def test_the_loader_and_the_accounts_agree_with_the_plan(built: tuple[StepContext, Plan]) -> None:
    context, plan = built
    loader = SequenceLoader(context.store(), "pretrain", 16, micro_batch=8)
    tokens = image = 0
    for batch in loader:
        ids = batch["tokens"]
        tokens += int((ids != PAD).sum())
        image += int(((ids >= FIRST_IMAGE_CODE) & (ids <= loader.vocabulary.boi)).sum())
    assert tokens == sum(i.tokens for stage in plan.stages for i in stage.intervals)
    assert image == sum(i.image_tokens for stage in plan.stages for i in stage.intervals)
    account = Account(context.store(), "pretrain")
    whole = account.positions(range(len(account.order)))
    for source, counts in whole.items():
        planned = [stage.tokens.get(source, {"image": 0, "text": 0, "control": 0}) for stage in plan.stages]
        assert counts["image"] == sum(p["image"] for p in planned)
        assert counts["text"] == sum(p["text"] + p["control"] for p in planned)


def test_batches_have_the_mixtures_image_share(context_of: Contexts) -> None:
    """Any 100 consecutive batches, against as many sequences drawn at random: within 3σ."""
    context, several = context_of(7, tokens=300_000), 100 * 4
    build(context, workers=0)
    account = Account(context.store(), "pretrain")
    for stage in (0, 1):
        positions = range(*account.order.stage_span(stage))
        alone = np.array([sum(c["image"] for c in account.positions([p]).values()) for p in positions])
        assert len(alone) > 2 * several
        sums = np.convolve(alone, np.ones(several), "valid")
        assert np.abs(sums - alone.mean() * several).max() < 3 * alone.std() * np.sqrt(several)


def test_a_store_that_changed_after_planning_is_found(context_of: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowGroup, "write", lambda *a: 3)
    with pytest.raises(StoreError, match="document store changed"):
        build(context_of(8), workers=0)


def test_sizes_of_groups_windows_and_files_change_nothing_but_the_order(
    built: tuple[StepContext, Plan], context_of: Contexts
) -> None:
    """What is used is decided by the intervals alone."""
    context, plan = built
    other = context_of(9, window=40, file_sequences=77)
    again = build(other, workers=0)
    for a, b in zip(plan.stages, again.stages, strict=True):
        assert (a.intervals, a.tokens, a.documents) == (b.intervals, b.tokens, b.documents)
        uses = [
            Counter((s["part"], s["row"], s["occurrence"]) for s in spans_of(c.store(), p) if s["first_token"] == 0)
            for c, p in ((context, a), (other, b))
        ]
        assert uses[0] == uses[1]
        assert set(uses[0].values()) == {1}


def test_a_misspelt_column_ends_the_step_before_any_work(context_of: Contexts) -> None:
    context = context_of(12, where={"chat": {"short": "tokns < 3"}})
    with pytest.raises(RecipeError, match=r"mix\.where\.chat\.short.*did you mean 'tokens'"):
        build(context, workers=0)
    assert not done_parts(context.store())


def test_everything_left_out_is_named_with_the_nearest_plan(context_of: Contexts) -> None:
    context = context_of(13, where={"text": {"never": "false"}})
    with pytest.raises(
        RecipeError, match=r"stages\.stage-1\.weights\.text.*450 documents.*\{emoji: 0\.5, stories: 0\.2\}"
    ):
        build(context, workers=0)


def test_a_limit_of_passes_is_kept_or_refused(context_of: Contexts) -> None:
    with pytest.raises(RecipeError, match=r"max_passes is 2.*emoji 2\.5\d.*mix\.tokens: ([\d,]+)") as refused:
        build(context_of(14, max_passes=2.0), workers=0)
    most = re.search(r"mix\.tokens: ([\d,]+)", str(refused.value))
    assert most is not None
    plan = build(context_of(15, max_passes=2.0, tokens=int(most[1].replace(",", ""))), workers=0)
    interval = plan.stages[1].intervals[0]
    assert interval.stream == "emoji"
    assert interval.stop / interval.per_pass == pytest.approx(2.0, abs=0.02)
