"""What is exported is what training sees, to our own readers and to the packages it is for; and it comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import RecipeError, StoreError
from infra.storage import Storage
from infra.store.plan import load_plan
from infra.store.sequences import SequenceReader
from model.data.loader import SequenceLoader
from model.data.order import Order
from model.vocabulary import PAD
from tasks.exchange.export import ABOUT, LOST, export_tokens
from tasks.exchange.records import UNSEEN, documents, sequences
from tasks.sources import open_source
from tasks.sources.config import SourceConfig
from tests.model.data.conftest import mix_store  # noqa: F401 - the small mix folder
from tests.tasks.sources.reading import samples

ROOT = Path(__file__).resolve().parents[3]


def seen(store: Storage, run: Any) -> dict[str, list[np.ndarray]]:
    """The ids of every sequence in the order of training, by stage."""
    found: dict[str, list[np.ndarray]] = {}
    loader = SequenceLoader(store, run, 1)
    for batch in loader:
        found.setdefault(loader.stage, []).append(batch["tokens"][0].numpy())
    return found


def documents_of(sequences: list[np.ndarray]) -> list[list[int]]:
    """Cut before every <s>: the small folder's documents are all whole."""
    return [
        piece[piece != PAD].tolist()
        for ids in sequences
        for piece in np.split(ids, np.flatnonzero(ids == 0))
        if (piece != PAD).any()
    ]


def read_with(package: str, out: Path, paths: list[Path]) -> dict[str, np.ndarray]:
    """What another package finds, by ``PATH NUMBER COLUMN``."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("read_with.py")), package, str(out), *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name.replace("|", "/"): value for name, value in np.load(out).items()}


COMBINATIONS = [(form, unit) for form in ("mds", "megatron") for unit in ("sequences", "documents")]


@pytest.fixture(scope="module")
def exported(mix_store: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Everything in every form: FORM-UNIT/STAGE; Megatron's also as int32."""
    folder = tmp_path_factory.mktemp("exported")
    for form, unit in COMBINATIONS:
        made = export_tokens(mix_store, Storage(folder / f"{form}-{unit}"), form, unit, file_bytes=700)  # type: ignore[arg-type]
        assert [m.name for m in made] == ["stage-1", "stage-2", "epoch-0", "epoch-1", "held-out-a"]
    export_tokens(mix_store, Storage(folder / "megatron-int32"), "megatron", "sequences", only="stage-1", dtype="int32")
    return folder


def test_mosaicml_streaming_reads_it(mix_store: Storage, exported: Path, tmp_path: Path) -> None:  # noqa: F811
    names = {"pretrain": ("stage-1", "stage-2"), "finetune": ("epoch-0", "epoch-1")}
    assert len(list((exported / "mds-sequences" / "stage-1").glob("*.mds"))) > 3
    paths = [
        exported / f"mds-{unit}" / n
        for unit in ("sequences", "documents")
        for n in (n for several in names.values() for n in several)
    ]
    found = read_with("streaming", tmp_path / "found.npz", paths)
    for run, name in [(r, name) for r, several in names.items() for name in several]:
        expected, before = seen(mix_store, run)[name], 0
        if name != names[run][0]:
            before = len(seen(mix_store, run)[names[run][0]])
        at = str(exported / "mds-sequences" / name)
        assert int(found[f"{at} count"]) == len(expected)
        for number, ids in enumerate(expected):
            assert found[f"{at} {number} tokens"].tolist() == ids.tolist()
            assert int(found[f"{at} {number} position"]) == before + number
            starts = found[f"{at} {number} starts"].tolist()
            assert starts == [t for t in range(len(ids)) if ids[t] == 0 or (ids[t] == PAD and ids[t - 1] != PAD)]
            assert (f"{at} {number} loss" in found) == (run == "finetune")
        at, documents = str(exported / "mds-documents" / name), documents_of(expected)
        assert [found[f"{at} {n} tokens"].tolist() for n in range(int(found[f"{at} count"]))] == documents
        assert {str(found[f"{at} {n} source"]) for n in range(len(documents))} == {"a", "b"}
        assert (str(found[f"{at} 0 part"]), int(found[f"{at} 0 occurrence"])) == ("p", 0)
        assert (f"{at} 0 loss" in found) == (run == "finetune")


def test_megatron_core_reads_it(mix_store: Storage, exported: Path, tmp_path: Path) -> None:  # noqa: F811
    folders = [exported / name / "stage-1" for name in ("megatron-sequences", "megatron-documents", "megatron-int32")]
    files = {folder: [f.with_suffix("") for f in sorted(folder.glob("*.idx"))] for folder in folders}
    assert len(files[folders[0]]) > 1
    found = read_with("megatron", tmp_path / "found.npz", [path for several in files.values() for path in several])
    sequences = seen(mix_store, "pretrain")["stage-1"]
    for folder, paths in files.items():
        expected = documents_of(sequences) if "documents" in str(folder) else [s.tolist() for s in sequences]
        got: list[list[int]] = []
        for path in map(str, paths):
            count = int(found[f"{path} count"])
            assert found[f"{path} documents"].tolist() == list(range(count + 1))
            assert found[f"{path} 0 tokens"].dtype == ("int32" if "int32" in path else "uint16")
            got += [found[f"{path} {n} tokens"].tolist() for n in range(count)]
        assert got == expected


@pytest.mark.parametrize("cut", [sequences, documents])
def test_positions_are_those_of_the_run(mix_store: Storage, cut: Any) -> None:  # noqa: F811
    plan = load_plan(mix_store)
    for folders in (plan.stages, plan.finetune):
        order = Order([(f.name, f.slices) for f in folders], plan.seed)
        found: list[int] = []
        for packed in folders:
            reader = SequenceReader(mix_store, packed.folder)
            for record in cut(mix_store, plan, packed):
                position = record.fields["position"]
                stage, number = order.locate([position])
                assert folders[stage].name == packed.name
                ids = reader.read(number.tolist())[0][0].tolist()
                assert set(record.tokens_T.tolist()) <= set(ids)
                if cut is sequences:
                    assert record.tokens_T.tolist() == ids
                found.append(position)
        assert sorted(set(found)) == list(range(len(order)))
    for packed in plan.held_out.values():
        assert {record.fields["position"] for record in cut(mix_store, plan, packed)} == {UNSEEN}


@pytest.mark.parametrize(("form", "unit"), COMBINATIONS)
def test_what_was_exported_is_a_source(mix_store: Storage, exported: Path, form: str, unit: str) -> None:  # noqa: F811
    config = SourceConfig(name="s", type=form, kind="tokens", path=f"{form}-{unit}/stage-2")
    found = samples(open_source(config, exported), target=3)
    expected = documents_of(seen(mix_store, "pretrain")["stage-2"])
    assert [np.frombuffer(r.tokens, "<u2").tolist() for r in found] == [ids[1:-1] for ids in expected]
    assert len({r.key for r in found}) == len(found)


def test_says_what_is_lost_and_refuses_a_folder_in_use(mix_store: Storage, tmp_path: Path) -> None:  # noqa: F811
    out = Storage(tmp_path)
    (made,) = export_tokens(mix_store, out, "megatron", "documents", only="held-out-a")
    about = json.loads(out.get(f"held-out-a/{ABOUT}"))
    assert about["lost"] == LOST["megatron", "documents"]
    assert (about["records"], about["tokens"]) == (made.records, made.tokens)
    assert about["plan"] == "plan-a"
    with pytest.raises(StoreError, match="held-out-a: there are files already"):
        export_tokens(mix_store, out, "mds", "documents", only="held-out-a")
    with pytest.raises(RecipeError, match="--only stage-3: no such stage.*there are stage-1, stage-2, epoch-0"):
        export_tokens(mix_store, out, "mds", "documents", only="stage-3")
