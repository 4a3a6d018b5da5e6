"""The processor of an exported folder, and the one of our own tokenizers, give the ids of the document store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import SourceError
from model.image_tokenizer.config import ImageTokenizerConfig
from model.processor import interleave, processing_calumma
from model.processor.processing_calumma import CalummaProcessor
from model.text_tokenizer.codec import TextTokenizer
from model.text_tokenizer.convert import hf_tokenizer_files
from model.text_tokenizer.importing import import_tokenizer
from model.vocabulary import EOS
from tasks.artifacts import Tokenizers
from tasks.documents.build import document
from tasks.documents.captions import image_first, realise
from tasks.documents.ids import unpack_bits
from tasks.encode.decode import ImageError, open_image
from tasks.export import PROCESSOR_FILES, image_processor_config, processor_config
from tests.model.text_tokenizer.standins import CORPUS, SMALL, byte_fallback, byte_level
from tests.model.text_tokenizer.test_convert import OURS
from tests.tasks.encode.test_decode import large_tile

IMAGE = ImageTokenizerConfig(
    resolution=16, codes=SMALL.image_codes, channels=8, norm_groups=4, multipliers=(1, 2, 2), z_channels=8, embed_dim=8
)
N = IMAGE.codes_per_image
TEXT_TOKENIZERS = {
    "trained": OURS,
    "byte level": import_tokenizer(byte_level(SMALL), "a.json", SMALL),
    "byte fallback": import_tokenizer(byte_fallback(), "a.json", SMALL),
}


def export(folder: Path, text: TextTokenizer) -> Path:
    """What of an exported folder the processor reads."""
    files: dict[str, Any] = {
        "processor_config.json": processor_config(SMALL, IMAGE),
        "preprocessor_config.json": image_processor_config(IMAGE),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    for name, data in hf_tokenizer_files(text).items():
        (folder / name).write_bytes(data)
    for file in PROCESSOR_FILES:
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CalummaProcessor]:
    return {
        name: CalummaProcessor.from_pretrained(export(tmp_path_factory.mktemp("export"), text))
        for name, text in TEXT_TOKENIZERS.items()
    }


class _NoPictures:
    config = IMAGE


def interleaver(text: TextTokenizer) -> interleave.Interleaver:
    return Tokenizers(text, _NoPictures()).interleaver()  # type: ignore[arg-type]


TEXTS = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from(["<s>", "</s>", "<image>", "<racm3:break>", "IMGIMGAZ", "<eoss>", "▁", "  ", "apple"])
    ).map("".join),
)
CODES = st.lists(st.integers(0, SMALL.image_codes - 1), min_size=N, max_size=N)


def row(kind: str, segments: list[Any], roles: list[str] | None = None) -> dict[str, Any]:
    """Segments as the sample store has them."""
    found: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for segment, role in zip(segments, roles or [""] * len(segments), strict=True):
        if isinstance(segment, str):
            found.append({"role": role, "text": segment, "image": None})
        else:
            found.append({"role": role, "text": None, "image": len(images)})
            images.append({"codes": np.array(segment, "<u2").tobytes()})
    shared = {"sample_id": b"i" * 16, "kind": kind, "category": "", "held_out": False, "captions": []}
    return {**shared, "segments": found, "images": images}


@pytest.mark.parametrize("name", TEXT_TOKENIZERS)
@given(
    segments=st.lists(TEXTS | CODES, min_size=1, max_size=5).filter(
        lambda s: any(x if isinstance(x, list) else x.strip() for x in s)
    )
)
@settings(max_examples=60, deadline=None)
def test_interleaved_documents(processors: dict[str, CalummaProcessor], name: str, segments: list[Any]) -> None:
    text = TEXT_TOKENIZERS[name]
    expected = np.frombuffer(document(row("interleaved", segments), text.encode, SMALL)["tokens"], "<u2").tolist()
    batch = processors[name]([segments], add_eos_token=True)
    assert batch["input_ids"] == [expected]
    assert batch["attention_mask"] == [[1] * len(expected)]
    assert interleaver(text).documents([segments], eos=True).ids == [expected]
    assert processors[name].segments(expected) == interleaver(text).segments(expected)
    assert "".join(s["text"] for s in processors[name].segments(expected) if s["type"] == "text") == "".join(
        s for s in segments if isinstance(s, str)
    )


@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXTS | CODES), min_size=1, max_size=6
    ).filter(lambda turns: turns[-1][0] == "assistant" and bool(turns[-1][1]) and str(turns[-1][1]).strip() != "")
)
@settings(max_examples=100, deadline=None)
def test_conversations(processors: dict[str, CalummaProcessor], turns: list[tuple[str, Any]]) -> None:
    made = document(row("messages", [x for _, x in turns], [role for role, _ in turns]), OURS.encode, SMALL)
    expected = np.frombuffer(made["tokens"], "<u2").tolist()
    talk = [{"role": role, "content": x if isinstance(x, str) else [x]} for role, x in turns]
    batch = processors["trained"].apply_chat_template(talk, return_assistant_tokens_mask=True)
    assert batch["input_ids"] == [expected]
    assert batch["assistant_masks"] == [unpack_bits(made["loss"], len(expected)).astype(int).tolist()]
    assert interleaver(OURS).conversations([talk]).ids == [expected]


def test_both_orders_of_a_pair(processors: dict[str, CalummaProcessor]) -> None:
    codes, caption = list(range(N)), "a red apple <image>"
    sample = row("pairs", [codes]) | {"captions": [caption]}
    stored = document(sample, OURS.encode, SMALL)
    for occurrence in (0, 1):
        first = image_first(sample["sample_id"], occurrence, 0)
        segments = [codes, caption] if first else [caption, codes]
        (ids,) = processors["trained"]([segments], add_eos_token=True)["input_ids"]
        assert ids == realise(stored, occurrence, 0).tolist()


def test_pictures_stand_as_placeholders_with_their_pixels(
    processors: dict[str, CalummaProcessor], tmp_path: Path
) -> None:
    processor = processors["trained"]
    picture = Image.new("RGB", (40, 30), "#d62728")
    picture.save(tmp_path / "p.png")
    batch = processor(
        [["What is ", picture, "?"], "no picture <image>", [{"type": "image", "path": tmp_path / "p.png"}]],
        padding=True,
        return_tensors="pt",
    )
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["pixel_values"][0].mean((1, 2)).tolist() == pytest.approx(
        [214 / 127.5 - 1, 39 / 127.5 - 1, 40 / 127.5 - 1], abs=1e-5
    )
    placeholder = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert (batch["input_ids"] == placeholder).sum(1).tolist() == [N, 0, N]
    assert batch["attention_mask"].sum(1).tolist() == [
        len(processor([r])["input_ids"][0]) for r in (["What is ", picture, "?"], ["no picture <image>"], [picture])
    ]
    assert processor.segments(batch["input_ids"][0]) == [
        {"type": "text", "text": "What is "},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    left = processor(["a", "an apple"], padding="max_length", max_length=20, padding_side="left")
    assert [r[:5] for r in left["input_ids"]] == [[1] * 5] * 2
    assert [sum(m) for m in left["attention_mask"]] == [20 - r.count(1) for r in left["input_ids"]]


def _see_through(path: Path) -> None:
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    picture.paste((200, 30, 30, 255), (8, 8, 24, 24))
    picture.save(path)


def _on_its_side(path: Path) -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)


def _grey_16(path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)).save(path)


@pytest.mark.parametrize(
    ("write", "corner"), [(_see_through, 255), (_on_its_side, 255), (_grey_16, 0)], ids=["alpha", "EXIF", "16 bits"]
)
def test_pictures_are_seen_as_training_sees_them(
    processors: dict[str, CalummaProcessor], tmp_path: Path, write: Any, corner: int
) -> None:
    path = tmp_path / "p.png"
    write(path)
    seen = open_image(path.read_bytes(), 10**6)
    assert seen.getpixel((0, 0)) == (corner,) * 3
    with Image.open(path) as opened:
        batch = processors["trained"]([[path], [opened], [seen]], return_tensors="np")["pixel_values"]
        assert np.abs(batch[0] - batch[1]).max() == np.abs(batch[0] - batch[2]).max() == 0
        assert abs(batch[0][:, 0, 0].mean() - (corner / 127.5 - 1)) < 0.25
        ours = Tokenizers(OURS, _Shown())  # type: ignore[arg-type]
        codes = ours.interleaver().documents([[path], [opened], [seen]]).ids
    assert codes[0] == codes[1] == codes[2]


class _Shown:
    """In place of an image tokenizer: the codes are the pixels."""

    config = IMAGE

    def encode(self, pixels: Any) -> Any:
        step = pixels.shape[-1] // IMAGE.grid
        return pixels[:, 0, ::step, ::step].flatten(1).long() * (IMAGE.codes - 1) // 255


def test_files_that_are_no_pictures_are_named_by_our_own_tokenizers(tmp_path: Path) -> None:
    ours = Tokenizers(OURS, _Shown()).interleaver()  # type: ignore[arg-type]
    (tmp_path / "p.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"p\.png: no picture format begins with"):
        ours.documents([[tmp_path / "p.png"]])
    with pytest.raises(SourceError, match=r"gone\.png: cannot be opened"):
        ours.documents([[tmp_path / "gone.png"]])
    with pytest.raises(ImageError, match="mode F cannot be read"):
        ours.documents([[Image.new("F", (4, 4))]])


def test_a_picture_of_too_many_pixels_is_refused(
    processors: dict[str, CalummaProcessor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processing_calumma, "MAX_PIXELS", 10**6)
    (tmp_path / "tile.tif").write_bytes(large_tile())
    with pytest.raises(ValueError, match=r"tile.tif: cannot be read as a picture \(it declares 4096x4096"):
        processors["trained"]([[tmp_path / "tile.tif"]])
    monkeypatch.setattr(processing_calumma, "MAX_PIXELS", 99)
    with pytest.raises(ValueError, match="it declares 10x10 = 100 pixels; at most 99 are decoded"):
        processors["trained"]([[Image.new("RGB", (10, 10))]])


def test_ids_that_no_text_leads_to_decode_to_nothing(processors: dict[str, CalummaProcessor]) -> None:
    ids = [SMALL.text_start, *OURS.encode("an ▁ apple\ntext[990]"), SMALL.size - 1]
    assert SMALL.size - 1 >= SMALL.text_start + OURS.pieces
    assert OURS.decode(ids) == "an ▁ apple\ntext[990]"
    assert processors["trained"].segments(ids) == [{"type": "text", "text": OURS.decode(ids)}]
    assert processors["trained"].tokenizer.decode(ids) == OURS.decode(ids)


def test_prompts_and_answers_left_open(processors: dict[str, CalummaProcessor]) -> None:
    processor = processors["trained"]
    question = [{"role": "user", "content": "What?"}]
    answer = [*question, {"role": "assistant", "content": "An apple"}]
    asked = processor.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert asked == [[0, *OURS.encode("What?"), SMALL.eot]]
    left_open = processor.apply_chat_template([answer, answer], continue_final_message=True)["input_ids"]
    assert left_open == [[*asked[0], *OURS.encode("An apple")]] * 2
    ended = processor.apply_chat_template(answer)["input_ids"]
    assert ended == [[*left_open[0], EOS]]
    assert processor.messages(ended[0]) == [
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "An apple"}]},
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p("a <image>", images=[1]), "pictures stand among the segments"),
        (lambda p: p(), "pictures stand among the segments"),
        (lambda p: p(["a"], padding="lots"), "padding is 'lots'"),
        (lambda p: p(["a"], padding="max_length"), "needs max_length"),
        (lambda p: p(["a long apple"], max_length=2), "nothing is cut"),
        (lambda p: p([["a", None]]), "neither a text nor a picture"),
        (lambda p: p.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False), "no spelling"),
        (
            lambda p: p.apply_chat_template([{"role": "assistant", "content": "a"}], add_generation_prompt=True),
            "nothing to answer",
        ),
        (lambda p: p.apply_chat_template([]), "conversation 0 has no messages"),
        (lambda p: p.apply_chat_template({"role": "user", "content": "a"}), "conversation 0 is .*expected a list"),
        (lambda p: p.apply_chat_template(["a"], add_generation_prompt=True), "messages with `role` and `content`"),
        (lambda p: p.apply_chat_template([{"content": "a"}], add_generation_prompt=True), "expected messages with"),
        (lambda p: p([["a", {"type": "image", "path": "/etc/hostname"}]]), "must not say which file is opened"),
        (lambda p: p([[Path("nowhere.png")]]), "nowhere.png: cannot be read as a picture"),
        (lambda p: p([[Path(__file__)]]), "test_processor.py: cannot be read as a picture"),
        (lambda p: p([[Image.new("F", (4, 4))]]), "a picture: cannot be read as a picture .floating-point pixels"),
    ],
)
def test_what_cannot_be_done_is_said(processors: dict[str, CalummaProcessor], call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(processors["trained"])


def test_a_user_of_transformers_alone_gets_it_from_the_folder_and_can_save_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    folder = export(tmp_path / "a", OURS)
    script = f"""
import json, sys
from transformers import AutoProcessor
p = AutoProcessor.from_pretrained("a", trust_remote_code=True)
p.save_pretrained("b")
again = AutoProcessor.from_pretrained("b", trust_remote_code=True)
plain = AutoProcessor.from_pretrained("a")
ids = [q([["a <racm3:break> ", list(range({N}))]], add_eos_token=True)["input_ids"][0] for q in (p, again)]
print(json.dumps([ids, type(p).__name__, type(plain).__name__, "model" in sys.modules]))
"""
    env = {**os.environ, "PYTHONPATH": "", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (first, again), ours, plain, imported = json.loads(done.stdout.splitlines()[-1])
    expected = interleaver(OURS).documents([["a <racm3:break> ", list(range(N))]], eos=True).ids[0]
    assert first == again == expected
    assert (ours, plain, imported) == ("CalummaProcessor", "ChameleonProcessor", False)
    assert folder.is_dir()


def test_the_corpus_goes_through(processors: dict[str, CalummaProcessor]) -> None:
    batch = processors["trained"](CORPUS[:3])
    assert [processors["trained"].segments(ids)[0]["text"] for ids in batch["input_ids"]] == CORPUS[:3]
