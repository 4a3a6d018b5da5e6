from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.commit import PARTS
from infra.store.documents import DOCUMENTS
from infra.store.plan import load_plan
from infra.store.sequences import SequenceReader
from infra.store.tables import read_table
from model.data.order import Order
from tasks.addresses import addresses_of
from tasks.context import StepContext
from tasks.documents import run as documents
from tasks.documents.captions import realise
from tasks.documents.config import RemovalConfig
from tasks.occurrences import SequenceTrace
from tasks.recipe import Recipe
from tasks.scan.items import listed_items
from tasks.sources.base import sample_id
from tasks.trace import SampleTrace, raw_sample, trace
from tasks.trace_view import render
from tasks.train import text_tokenizer
from tests.tasks import data_run, toy_run
from tests.tasks.data_run import LATE, NAMES, DataRun

Toy = tuple[Path, Recipe]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    """A run of which one quarantined row was rescued by a retry."""
    run = data_run.make(tmp_path_factory.mktemp("trace"), "tokenize")
    run.retry()
    return run


LONE = r'{"text": "\ud800 lone"}'


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> DataRun:
    """A run up to its sequences; its stage has a source's name, and a text holds what UTF-8 cannot."""
    return data_run.make(tmp_path_factory.mktemp("mixed"), stage="texts", more_texts=[LONE])


def one(workdir: Path, what: str) -> SampleTrace:
    found = trace(addresses_of(workdir), what)
    assert isinstance(found, list)
    (sample,) = found
    return sample


def sequence(workdir: Path, what: str) -> SequenceTrace:
    found = trace(addresses_of(workdir), what)
    assert isinstance(found, SequenceTrace)
    return found


def shown(workdir: Path, what: str, out: Path | None = None, width: int = 200) -> str:
    addresses = addresses_of(workdir)
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for piece in render(addresses, trace(addresses, what), out):
        console.print(piece, crop=False)
    return console.export_text()


def test_a_sample_by_id_key_and_row_is_the_same(toy: Toy) -> None:
    wanted = sample_id("talks", "what:red-ring")
    by_id = one(toy[0], wanted.hex())
    assert by_id == one(toy[0], "talks:what:red-ring") == one(toy[0], "what:red-ring")
    stop = by_id.generations[0].stops[2]
    assert (stop.step, stop.state) == ("encode", "kept")
    assert by_id == one(toy[0], f"{by_id.generations[0].part}#{stop.index}")
    assert (by_id.source, by_id.file, by_id.row, by_id.licence, by_id.kind) == ("talks", "half-0", 8, "CC0", "messages")
    assert [s.state for s in by_id.generations[0].stops] == ["kept"] * 4


def test_its_uses_are_where_training_meets_it(toy: Toy) -> None:
    found = one(toy[0], "shapes:red-circle")
    mix = StepContext(toy[1], str(toy[0]), "mix").store()
    plan = load_plan(mix)
    order = Order([(s.name, s.slices) for s in plan.stages], plan.seed)
    trained = [u for u in found.uses if u.store.startswith("stages/")]
    assert [u.occurrence for u in trained] != []
    assert sorted(u.occurrence for u in trained) == list(range(len(trained)))
    assert [u.position for u in trained] == sorted(u.position or 0 for u in trained)
    stop = found.generations[0].stops[3]
    documents = StepContext(toy[1], str(toy[0]), "tokenize").store()
    name = f"{PARTS}/{found.generations[0].part}.parquet"
    row = read_table(documents.get(name), DOCUMENTS, name).to_pylist()[stop.index or 0]
    for use in trained:
        assert use.position is not None
        stage, number = order.locate([use.position])
        assert f"stages/{plan.stages[stage].name}" == use.store
        assert int(number[0]) == use.sequence
        tokens, starts, _ = SequenceReader(mix, f"{PARTS}/{use.store}").sequence(use.sequence)
        ids = realise(row, use.occurrence, toy[1].seed)
        assert np.array_equal(tokens[use.offset : use.offset + use.length], ids[use.first_token :][: use.length])
        assert starts[use.offset]


def test_every_position_leads_to_its_documents(toy: Toy) -> None:
    plan = load_plan(StepContext(toy[1], str(toy[0]), "mix").store())
    total = sum(s.sequences for s in plan.stages)
    seen = set()
    for position in (0, 1, total // 2, total - 1):
        found = sequence(toy[0], str(position))
        assert found.position == position
        assert found.documents
        for document in found.documents:
            assert document.sample_id == sample_id(document.source, document.key)
            assert (document.licence, document.file[:5]) == ("CC0", "half-")
        again = sequence(toy[0], f"{found.store}:{found.sequence}")
        assert again == found
        assert again == sequence(toy[0], f"{found.store.rpartition('/')[2]}:{found.sequence}")
        seen.add((found.store, found.sequence))
    assert len(seen) == 4
    with pytest.raises(StoreError, match=f"pre-training has {total} sequences"):
        trace(addresses_of(toy[0]), str(total))
    with pytest.raises(StoreError, match="sequences, counted from 0"):
        trace(addresses_of(toy[0]), "stage-1:100000")


def test_epochs_and_held_out_sequences(toy: Toy) -> None:
    tuned = sequence(toy[0], "epoch-1:0")
    assert tuned.store == "finetune/epoch-1"
    assert tuned.position is not None
    held = sequence(toy[0], "held-out/shapes:0")
    assert held.position is None
    assert {d.source for d in held.documents} == {"shapes"}


def test_a_row_in_quarantine_and_one_that_is_no_sample(toy: Toy) -> None:
    found = one(toy[0], "shapes:bad")
    stop = found.generations[0].stops[0]
    assert (stop.state, stop.reason) == ("quarantined", "not-an-image")
    assert "no picture format begins with" in stop.message
    text = shown(toy[0], "shapes:bad")
    assert "not-an-image: bad.png" in text
    assert "No packed sequence holds it." in text
    assert one(toy[0], "half-0#99").generations[0].stops[0].reason == "bad-json"
    assert "The raw sample cannot be shown" in shown(toy[0], "half-0#99")


def test_the_raw_sample_and_its_picture(toy: Toy, tmp_path: Path) -> None:
    text = shown(toy[0], "shapes:red-circle", tmp_path / "originals")
    assert "red circle ⏎ circle rot" in text
    (saved,) = (tmp_path / "originals").iterdir()
    assert saved.name == f"{sample_id('shapes', 'red-circle').hex()}-1.png"
    assert saved.read_bytes() == toy_run.picture("red", "circle")
    with Image.open(io.BytesIO(saved.read_bytes())) as picture:
        assert picture.size == (24, 24)


def test_a_rescued_row_shows_both_ways(data: DataRun) -> None:
    found = one(data.workdir, f"photos:{_key(data)}")
    assert [g.part for g in found.generations] == ["photos-000000", "photos-000000.r1"]
    first, second = found.generations
    assert (first.stops[0].state, first.stops[0].reason) == ("quarantined", "missing-image")
    assert [s.state for s in second.stops] == ["kept"] * 4
    assert (found.file, found.row, found.licence) == ("list.jsonl", LATE + 1, "CC BY 4.0")
    assert raw_sample(addresses_of(data.workdir), found).captions == (NAMES[LATE],)
    assert "Where it will be used in training is not known" in shown(data.workdir, f"photos:{_key(data)}")


def _key(data: DataRun) -> str:
    lines = (data.images.parent / "list.jsonl").read_bytes().splitlines(keepends=True)
    return f"list.jsonl@{sum(map(len, lines[:LATE]))}"


def test_rows_are_counted_from_the_file_s_first(data: DataRun) -> None:
    found = one(data.workdir, "photos-000003#1")
    line = (data.images.parent / "list.jsonl").read_text().splitlines()[found.row - 1]
    assert raw_sample(addresses_of(data.workdir), found).captions[0] in line
    items = listed_items(addresses_of(data.workdir).store("scan"))
    before = next(i.locator["start"] for i in items if i.part == "photos-000003")
    bad = one(data.workdir, f"list.jsonl@{before}#6")  # scan's tables count from where the range begins
    assert bad.row == len(NAMES) + 1


def test_a_filtered_and_a_doubled_row(data: DataRun) -> None:
    tiny, twin = (_offset(data, n) for n in (data_run.TINY, data_run.TWIN))
    states = [(s.step, s.state, s.reason) for s in one(data.workdir, f"photos:list.jsonl@{tiny}").generations[0].stops]
    assert states[0] == ("scan", "filtered", "min-side")
    pair = [one(data.workdir, f"photos:list.jsonl@{o}") for o in (twin, _offset(data, data_run.TWIN - 1))]
    fates = sorted((s.state, s.reason) for p in pair for s in p.generations[0].stops if s.step == "select")
    assert fates == [("dropped", "exact"), ("kept", "")]


def _offset(data: DataRun, number: int) -> int:
    lines = (data.images.parent / "list.jsonl").read_bytes().splitlines(keepends=True)
    return sum(map(len, lines[:number]))


def test_what_a_removal_list_took(tmp_path: Path) -> None:
    run = data_run.make(tmp_path, "encode")
    wanted = one(run.workdir, "texts:texts.jsonl@0").sample_id
    (tmp_path / "removed.txt").write_text(wanted.hex() + "\n")
    recipe = run.recipe.model_copy(update={"removal": RemovalConfig(list="removed.txt")})
    (run.workdir / "recipe.yaml").write_text(recipe.to_yaml())
    for step, make in (("text-tokenizer", text_tokenizer.run), ("tokenize", lambda c: documents.run(c, workers=0))):
        make(StepContext(recipe, str(run.workdir), step))
    stop = one(run.workdir, wanted.hex()).generations[0].stops[-1]
    assert (stop.step, stop.state) == ("tokenize", "left out")
    assert stop.reason == "this part has 1 removed (removed.txt)"
    assert "1 removed (removed.txt)" in shown(run.workdir, wanted.hex())


def test_what_is_not_there_is_said_with_what_to_give(toy: Toy) -> None:
    addresses = addresses_of(toy[0])
    for what in ("shapes:green-elephant", "f" * 32, "green-elephant"):
        with pytest.raises(StoreError, match="no such sample in"):
            trace(addresses, what)
    with pytest.raises(StoreError, match="it has 12, counted from 0"):
        trace(addresses, "shapes-000000#12")
    with pytest.raises(StoreError, match="no such part"):
        trace(addresses, "shapes-000077#0")


def test_positions_need_a_plan(data: DataRun) -> None:
    with pytest.raises(StoreError, match="step mix is not finished"):
        trace(addresses_of(data.workdir), "3")


def test_a_source_that_is_gone_costs_only_the_raw_sample(tmp_path: Path) -> None:
    run = data_run.make(tmp_path, "tokenize")
    (tmp_path / "list.jsonl").unlink()
    addresses = addresses_of(run.workdir)
    assert "there is nothing at" in addresses.guessed
    assert set(addresses.prints) >= {"scan", "select", "encode", "tokenize"}
    text = shown(run.workdir, "photos-000000#0")
    assert "The raw sample cannot be shown" in text
    assert "CC BY 4.0" in text
    assert Storage(run.workdir).exists(f"{addresses.folder('encode')}/manifest.json")


def test_a_stage_with_a_source_s_name(mixed: DataRun) -> None:
    found = sequence(mixed.workdir, "texts:0")
    assert found == sequence(mixed.workdir, "stages/texts:0")
    assert found.store == "stages/texts"
    assert one(mixed.workdir, "texts:texts.jsonl@0").key == "texts.jsonl@0", "the sample comes first"
    assert sequence(mixed.workdir, "photos:0").store == "held-out/photos"


def test_a_misspelt_stage_names_the_stages(mixed: DataRun, data: DataRun) -> None:
    for what in ("text:3", "photos:300"):
        with pytest.raises(StoreError, match="no such sequence. They are .* stages/NAME:SEQUENCE, .* stages/texts"):
            trace(addresses_of(mixed.workdir), what)
    with pytest.raises(StoreError, match="no sequence either, since step mix is not finished"):
        trace(addresses_of(data.workdir), "one:3")


def test_half_a_surrogate_pair_is_shown_as_an_escape(mixed: DataRun) -> None:
    key = f"texts.jsonl@{(mixed.workdir.parent / 'texts.jsonl').stat().st_size - len(LONE) - 1}"
    text = shown(mixed.workdir, f"texts:{key}")
    assert "bad-unicode" in text
    assert "\\ud800 lone" in text
    text.encode()


def test_what_is_to_be_copied_has_lines_of_its_own(mixed: DataRun) -> None:
    found = one(mixed.workdir, "photos-000000#0")
    (image,) = found.generations[0].stops[0].row["images"]
    lines = shown(mixed.workdir, "photos-000000#0", width=40).splitlines()
    for value in (found.sample_id.hex(), found.key, image["sha256"].hex(), "photos-000000"):
        assert any(line.rstrip().endswith(f" {value}") for line in lines), value
    lines = shown(mixed.workdir, "stages/texts:0", width=40).splitlines()
    for document in sequence(mixed.workdir, "stages/texts:0").documents:
        assert f"  sample {document.sample_id.hex()}" in lines
        assert f"  key    {document.key}" in lines
        assert f"  file   {document.file}, row {document.row:,}" in lines


@pytest.mark.parametrize("step", ["select", "encode", "tokenize"])
def test_a_lost_manifest_is_no_answer(mixed: DataRun, tmp_path: Path, step: str) -> None:
    workdir = Path(shutil.copytree(mixed.workdir, tmp_path / "a work"))
    assert one(workdir, "texts:texts.jsonl@0").uses_unknown == ""
    (path,) = workdir.glob(f"{step}/*/parts/texts-000000.json")
    path.unlink()
    found = one(workdir, "texts:texts.jsonl@0")
    stop = next(s for s in found.generations[0].stops if s.step == step)
    assert (stop.state, stop.reason) == ("cannot tell", "parts/texts-000000.json is missing")
    text = " ".join(shown(workdir, "texts:texts.jsonl@0").split())
    if step == "tokenize":
        assert str(path.relative_to(workdir)) in found.uses_unknown
        assert "cannot be told" in text
        assert f"Check: calumma verify '{workdir}'" in text
        assert "No packed sequence holds it" not in text
    else:
        assert found.uses == one(mixed.workdir, "texts:texts.jsonl@0").uses, "later parts know"
    assert one(workdir, "texts:texts.jsonl@0").uses_unknown == found.uses_unknown
    stops = one(mixed.workdir, f"photos:{_offset_key(mixed, data_run.TINY)}").generations[0].stops
    assert "cannot tell" not in {s.state for s in stops}, "what was kept back before is not looked for"


def _offset_key(run: DataRun, number: int) -> str:
    return f"list.jsonl@{_offset(run, number)}"


def test_a_part_of_scan_without_its_manifest_is_named(mixed: DataRun, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(mixed.workdir, tmp_path / "work"))
    (path,) = workdir.glob("scan/*/parts/texts-000000.json")
    path.unlink()
    with pytest.raises(StoreError, match="may be in texts-000000: that cannot be told.*manifests .* are missing"):
        trace(addresses_of(workdir), "texts:texts.jsonl@0")
