from __future__ import annotations

from pathlib import Path

import pytest

from tasks.sources.base import BadRow, RawSample
from tests.tasks.sources.reading import PACKED, errors, json_lines, jsonl, rows, samples, source


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def spoken(sample: RawSample) -> list[tuple[str, str | int | None]]:
    return [(s.role, s.text if s.image is None else s.image) for s in sample.segments]


def test_prompt_and_response_fields(pictures: Path) -> None:
    jsonl(
        pictures / "m.jsonl",
        [{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": "Say", "input": "", "output": "hi"}],
    )
    found = samples(
        source(pictures, "messages", "m.jsonl", prompt=["instruction", "input"], response="output", category="code")
    )
    assert [spoken(s) for s in found] == [
        [("user", "Add\n1 2"), ("assistant", "3")],
        [("user", "Say"), ("assistant", "hi")],
    ]
    assert {s.category for s in found} == {"code"}


def test_pictures_in_prompts_and_answers(pictures: Path) -> None:
    jsonl(
        pictures / "pictures" / "m.jsonl", [{"file": "a.png", "captions": ["a cat"], "rows": ["x", {"image": "b.png"}]}]
    )
    path = "pictures/m.jsonl"
    draw = source(
        pictures,
        "messages",
        path,
        prompt=["captions.0"],
        prompt_template="Draw: {}",
        response=None,
        answer_image="file",
    )
    assert spoken(samples(draw)[0]) == [("user", "Draw: a cat"), ("assistant", 0)]
    ask = source(pictures, "messages", path, prompt=[], prompt_template="What?", image="file", response="captions.0")
    assert spoken(samples(ask)[0]) == [("user", 0), ("user", "What?"), ("assistant", "a cat")]
    both = source(pictures, "messages", path, prompt=["captions.0"], image="file", response="rows")
    found = samples(both)[0]
    assert spoken(found) == [("user", 0), ("user", "a cat"), ("assistant", "x\n\n"), ("assistant", 1)]
    assert [i.data for i in found.images] == [b"a.png", b"b.png"]


def test_turns_and_placeholders(pictures: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>what?"},
        {"role": "assistant", "content": "that"},
        {"from": "human", "value": "and <image>? <image>"},
        {"from": "gpt", "value": "this"},
    ]
    jsonl(pictures / "pictures" / "m.jsonl", [{"messages": turns, "images": ["a.png", "b.png"]}])
    (found,) = samples(source(pictures, "messages", "pictures/m.jsonl", turns="messages", image="images"))
    assert spoken(found) == [
        ("user", "Be brief.\n\n"),
        ("user", 0),
        ("user", "what?"),
        ("assistant", "that"),
        ("user", "and "),
        ("user", 1),
        ("user", "? <image>"),
        ("assistant", "this"),
    ]


def test_pictures_without_a_place_come_first(pictures: Path) -> None:
    turns = [{"role": "user", "content": "x <image> y"}, {"role": "assistant", "content": "z"}]
    jsonl(pictures / "pictures" / "m.jsonl", [{"messages": turns, "images": ["a.png", "b.png"]}])
    (found,) = samples(source(pictures, "messages", "pictures/m.jsonl", turns="messages", image="images"))
    assert spoken(found) == [("user", 0), ("user", "x "), ("user", 1), ("user", " y"), ("assistant", "z")]
    assert [i.name for i in found.images] == ["b.png", "a.png"]


def test_bad_conversations(pictures: Path) -> None:
    jsonl(
        pictures / "m.jsonl",
        [
            {"response": "no prompt"},
            {"prompt": "no response"},
            {"prompt": 3, "response": "x"},
            {"prompt": "p", "response": {"a": 1}},
            {"prompt": "p", "response": "fine"},
        ],
    )
    assert errors(source(pictures, "messages", "m.jsonl")) == [
        "missing-field",
        "missing-field",
        "bad-field",
        "bad-field",
    ]
    jsonl(pictures / "t.jsonl", [{"messages": [{"role": "tool", "content": "x"}]}, {"messages": "x"}, {"messages": []}])
    assert errors(source(pictures, "messages", "t.jsonl", turns="messages")) == ["bad-field", "bad-field"]


def test_a_prompt_that_is_not_there_is_told_from_an_empty_one(pictures: Path) -> None:
    prompts: list[dict[str, str | None]] = [{"prompt": " "}, {"prompt": None}, {}, {"prompt": "", "more": "x"}]
    jsonl(pictures / "m.jsonl", [p | {"response": "x"} for p in prompts])
    found = rows(source(pictures, "messages", "m.jsonl"))
    assert [(r.error, r.message) for r in found if isinstance(r, BadRow)] == [
        ("missing-field", "no prompt: field 'prompt' is empty"),
        ("missing-field", "no prompt: field 'prompt' is null"),
        ("missing-field", "no prompt: no field 'prompt'; there are response"),
        ("missing-field", "no prompt: field 'prompt' is empty"),
    ]
    others = rows(source(pictures, "messages", "m.jsonl", prompt=["prompt", "more"]))
    assert [s.segments[0].text for s in others if isinstance(s, RawSample)] == ["x"]


def test_folders_of_conversations(pictures: Path) -> None:
    content = [{"prompt": f"p{n}", "response": "r"} for n in range(30)]
    jsonl(pictures / "m" / "1.jsonl", content)
    (pictures / "m" / "2.jsonl.zst").write_bytes(PACKED[".zst"](json_lines(content)))
    found = samples(source(pictures, "messages", "m"), 4)
    assert len(found) == len({s.key for s in found}) == 60


def test_a_picture_that_leads_out_of_its_folder_costs_its_conversation(pictures: Path) -> None:
    jsonl(pictures / "pictures" / "m.jsonl", [{"prompt": "p", "response": "r", "file": n} for n in ("../x", "no.png")])
    found = source(pictures, "messages", "pictures/m.jsonl", image="file")
    assert errors(found) == ["path-escape"]


def test_real_conversations_are_read_without_a_bad_row(shared_data: Path) -> None:
    chat = samples(source(shared_data, "messages", "sft/visualchat_daquar.jsonl", turns="messages", image="images"))
    assert all(s.images and s.segments[0].image == 0 for s in chat)
