from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from infra.errors import CalummaError, StoreError
from infra.store.commit import PARTS
from tasks.context import StepContext
from tasks.inspect import inspect
from tasks.inspect_tokens import Readable, half_blocks, token_text
from tasks.recipe import Recipe
from tests.tasks import toy_run

Toy = tuple[Path, Recipe]


def folder(toy: Toy, step: str) -> Path:
    return StepContext(toy[1], str(toy[0]), step).store().path()


def shown(path: Path, out: Path | None = None, limit: int = 5, width: int = 160, sequence: int | None = None) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for piece in inspect(path, out=out, limit=limit, sequence=sequence):
        console.print(piece)
    return console.export_text()


def test_samples(toy: Toy, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "sheet.png"
    text = shown(folder(toy, "encode") / PARTS / "shapes-000000.parquet", out, limit=3)
    assert "calumma-samples" in text
    assert "red circle" in text
    assert "circle rot" in text
    assert "picture 3, from 24×24" in text
    assert "picture 4" not in text
    assert "▀" in text
    assert f"3 pictures: {out}" in " ".join(text.split())
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 128


def test_documents_show_their_spans(toy: Toy) -> None:
    text = shown(folder(toy, "tokenize") / PARTS / "talks-000000.parquet", limit=2)
    assert "<s> ▣ picture 1 What is this?" in text
    assert "</s>" in text
    assert "messages  visual-chat" in text


def test_sequences_show_documents_and_where_they_come_from(toy: Toy) -> None:
    stage = folder(toy, "mix") / PARTS / "stages" / "stage-1"
    text = shown(stage / "seq-000000.u16", limit=1)
    assert "sequences 0 to " in text
    assert re.search(r"(\w+) \1-00000\d row \d+, occurrence \d+, \d+ tokens", text)
    assert "% filled" in text
    assert shown(stage, limit=1).count("sequence 0:") == 1  # the folder, by its sequences.json
    answers = folder(toy, "mix") / PARTS / "finetune" / "epoch-0" / "seq-000000.u16"
    assert "<s>Draw: " in shown(answers, limit=20)


def test_one_sequence_by_its_number(toy: Toy) -> None:
    """As the error of a training names it: by stage and number, whichever file it lies in."""
    stage = folder(toy, "mix") / PARTS / "stages" / "stage-1"
    count = json.loads((stage / "sequences.json").read_text())["sequences"]
    found = shown(stage, sequence=count - 1)
    assert f"sequence {count - 1:,}: " in found
    assert found.count("% filled") == 1
    assert found == shown(stage / "seq-000000.u16", sequence=count - 1)
    with pytest.raises(StoreError, match=f"no sequence {count:,}; it holds 0 to {count - 1:,}"):
        shown(stage, sequence=count)
    with pytest.raises(StoreError, match="no folder of sequences"):
        shown(folder(toy, "scan"), sequence=0)


def test_damaged_sequences_are_named(toy: Toy, tmp_path: Path) -> None:
    copy = tmp_path / "stage"
    copy.mkdir()
    for file in (folder(toy, "mix") / PARTS / "stages" / "stage-1").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = bytearray((copy / "seq-000000.u16").read_bytes())
    data[5] ^= 1
    (copy / "seq-000000.u16").write_bytes(data)
    with pytest.raises(StoreError, match="do not match their checksum"):
        shown(copy / "seq-000000.u16")


def test_manifests(toy: Toy) -> None:
    text = shown(folder(toy, "scan"))
    assert "Manifest" in text
    assert "bad-json 1" in text
    assert "closed" in text
    part = shown(folder(toy, "evaluate") / PARTS / "losses-pretrain.json")
    assert "losses-pretrain.results.json" in part
    plan = shown(folder(toy, "mix") / "plan.json")
    assert "stage-2" in plan
    assert "held-out" in plan


def test_tables_weights_metrics_and_tokenizers(toy: Toy) -> None:
    assert "calumma-scan" in shown(folder(toy, "scan") / PARTS / "shapes-000000.parquet")
    assert "bad-json" in shown(folder(toy, "scan") / PARTS / "shapes-000000.quarantine.parquet")
    weights = shown(folder(toy, "pretrain") / "model.safetensors")
    assert "layers.1.attention.qkv.weight" in weights
    assert f"{toy[1].model.parameters(toy[1].vocabulary.size):,}" in weights
    assert "120 lines" in shown(folder(toy, "pretrain") / "metrics.jsonl")
    assert "300" in shown(folder(toy, "text-tokenizer") / "text.model")


def test_checkpoints(tmp_path: Path) -> None:
    torch.save({"step": 7, "model": {"w": torch.zeros(2, 3)}}, tmp_path / "step.pt")
    text = shown(tmp_path / "step.pt")
    assert "model.w" in text
    assert "float32 2×3" in text
    state = {"format": "calumma-checkpoint", "version": 2, "step": 7, "layout": {"world": 2}}
    state |= {"state": {"loader": 5}, "files": []}
    (tmp_path / "step-00000007.json").write_text(json.dumps(state))
    (tmp_path / "step-00000007").mkdir()
    assert '"loader": 5' in shown(tmp_path / "step-00000007")


def test_nothing_foreign_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(StoreError, match="it is not opened"):
        shown(tmp_path / "evil.pt")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["x.json", "x.parquet", "x.safetensors", "x.pt", "x.txt"])
def test_files_of_other_kinds_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x07not what it seems")
    with pytest.raises(StoreError, match=name):
        shown(tmp_path / name)


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(CalummaError, match="no such file"):
        shown(tmp_path / "none.parquet")
    with pytest.raises(CalummaError, match="without a manifest"):
        shown(tmp_path)


def test_words_in_brackets_are_not_markup(toy: Toy, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"[red]name": ["[/oops] [bold]x"]}), tmp_path / "x.parquet")
    text = shown(tmp_path / "x.parquet")
    assert "[red]name" in text
    assert "[/oops] [bold]x" in text


def test_ids_without_a_work_folder_are_numbers(toy: Toy, tmp_path: Path) -> None:
    file = folder(toy, "tokenize") / PARTS / "words-000000.parquet"
    (tmp_path / file.name).write_bytes(file.read_bytes())
    out = tmp_path / "sheet.png"
    text = shown(tmp_path / file.name, out, limit=1)
    assert "0 " in text
    assert "No pictures to write" in text
    assert not out.exists()


def test_broken_pictures_are_marked(toy: Toy) -> None:
    readable = Readable.near(str(folder(toy, "mix") / "plan.json"))
    vocabulary = toy[1].vocabulary
    text = token_text([0, vocabulary.boi, 5, 6, 2], readable)
    assert "2 codes of a broken picture" in text.plain
    assert readable.pictures == []
    assert readable.tokenizers is not None


def test_a_picture_in_the_terminal() -> None:
    import io

    picture = Image.open(io.BytesIO(toy_run.picture("red", "square")))
    text = half_blocks(picture, 8)
    assert text.plain == ("▀" * 8 + "\n") * 4
    assert any("rgb(214,39,40)" in str(s.style) for s in text.spans)
