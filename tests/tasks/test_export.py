from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from infra.errors import StepFailed, StoreError
from infra.storage import Storage
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.load import ImageTokenizer
from model.image_tokenizer.vqgan import VQModel
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.train import train
from model.transformer.config import TransformerConfig
from model.transformer.foreign_files import find_model
from model.transformer.importing import open_import
from model.transformer.load import save_transformer
from model.transformer.model import Transformer
from model.transformer.original import save_original
from model.transformer.tensors import INDEX, SHARD_BYTES
from model.vocabulary import Vocabulary
from tasks.artifacts import Tokenizers
from tasks.export import export_folder
from tasks.export_check import check_export, check_original

VOCABULARY = Vocabulary(image_codes=16, text_start=32, size=600)


@pytest.fixture(scope="module")
def tokenizers() -> Tokenizers:
    torch.manual_seed(0)
    image = ImageTokenizerConfig(
        resolution=16,
        codes=16,
        channels=8,
        norm_groups=4,
        multipliers=(1, 2),
        residual_blocks=1,
        z_channels=8,
        embed_dim=8,
    )
    text = train(["a red apple and a green pear, 42 of them\n"] * 50, TextTokenizerConfig(), VOCABULARY)
    return Tokenizers(text, ImageTokenizer(VQModel(image)))


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    config = TransformerConfig(dim=64, layers=2, heads=4, kv_heads=2, ffn=96, qk_norm_shards=2, norm="reordered")
    model = Transformer(config, VOCABULARY.size).initialise(0).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(0.3 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def finetuned(transformer: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """The step's folder that is exported."""
    store = Storage(tmp_path_factory.mktemp("finetuned"))
    save_transformer(store, transformer.config, VOCABULARY.size, transformer.state_dict())
    return store


def exported(
    folder: Path, transformer: Transformer, tokenizers: Tokenizers, length: int = 64, shard_bytes: int = SHARD_BYTES
) -> Storage:
    store = Storage(folder / "exported")
    names = export_folder(store, transformer.config, transformer.state_dict(), tokenizers, length, shard_bytes)
    assert sorted(names) == store.list()
    return store


@pytest.mark.parametrize("shard_bytes", [SHARD_BYTES, 100_000])
def test_transformers_computes_the_same_and_writes_text(
    transformer: Transformer, tokenizers: Tokenizers, finetuned: Storage, tmp_path: Path, shard_bytes: int
) -> None:
    store = exported(tmp_path, transformer, tokenizers, shard_bytes=shard_bytes)
    assert store.exists(INDEX) == (shard_bytes < SHARD_BYTES)
    facts = check_export(store, finetuned, tokenizers, 64)
    assert facts["max_abs_diff"] < 1e-4
    assert facts["equal_codes"] > 0.99
    assert isinstance(facts["generated"]["text"], str)
    config = json.loads(store.get("config.json"))
    assert config["bos_token_id"] == 0
    assert config["vocabulary_map"]["<racm3:break>"] == VOCABULARY.boi
    assert config["vocabulary_map"]["IMGIMGBFZ"] == 4 + 15
    assert config["image_token_id"] == config["vocabulary_map"]["<image>"]


def test_the_exported_processor_feeds_the_exported_model(
    transformer: Transformer, tokenizers: Tokenizers, tmp_path: Path
) -> None:
    """Placeholders with pixels, and the codes of these pixels as ids, come to the same hidden states."""
    from transformers import ChameleonForConditionalGeneration

    from model.processor.processing_calumma import CalummaProcessor

    folder = exported(tmp_path, transformer, tokenizers, 128).path()
    processor = CalummaProcessor.from_pretrained(folder)
    theirs = ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    picture = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
    batch = processor([["A red <image> ", picture, " and"], "a <racm3:break> pear"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = theirs.model(**batch)[0]
        codes = theirs.model.get_image_tokens(batch["pixel_values"])[0] - 4
        known = processor(
            [["A red <image> ", codes, " and"], "a <racm3:break> pear"], padding=True, return_tensors="pt"
        )
        assert "pixel_values" not in known
        assert torch.allclose(theirs.model(**known)[0], hidden, atol=1e-5)
    picture.save(tmp_path / "p.png")
    for given in (picture, tmp_path / "p.png"):
        ours = tokenizers.interleaver().documents([["A red <image> ", given, " and"]]).ids[0]
        assert known["input_ids"][0].tolist()[: len(ours)] == ours


def test_the_same_model_gives_the_same_bytes(transformer: Transformer, tokenizers: Tokenizers, tmp_path: Path) -> None:
    a, b = (exported(tmp_path / name, transformer, tokenizers, shard_bytes=200_000) for name in "ab")
    assert all(a.get(name) == b.get(name) for name in a.list())


def test_a_wrong_conversion_is_not_committed(
    transformer: Transformer, tokenizers: Tokenizers, finetuned: Storage, tmp_path: Path
) -> None:
    other = Transformer(transformer.config, VOCABULARY.size).initialise(1).eval()
    with pytest.raises(StepFailed, match="hidden states differ"):
        check_export(exported(tmp_path, other, tokenizers), finetuned, tokenizers, 64)


@pytest.mark.parametrize("shard_bytes", [SHARD_BYTES, 100_000])
def test_what_was_exported_can_be_imported(
    transformer: Transformer, tokenizers: Tokenizers, tmp_path: Path, shard_bytes: int
) -> None:
    """With the image tokenizer's part beside it; and what transformers saves itself."""
    from transformers import ChameleonForConditionalGeneration

    folder = exported(tmp_path, transformer, tokenizers, shard_bytes=shard_bytes).path()
    theirs = ChameleonForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard_bytes)
    for path in (folder, tmp_path / "theirs"):
        with open_import(find_model(str(path))) as found:
            assert found.config == transformer.config.model_copy(update={"dropout": 0.0})
            assert all(torch.equal(found.weights[name], w) for name, w in transformer.state_dict().items())


def test_refusals_name_file_and_tensor(transformer: Transformer, tokenizers: Tokenizers, tmp_path: Path) -> None:
    store = exported(tmp_path, transformer, tokenizers)
    config = json.loads(store.get("config.json"))
    for change, said in (
        ({"vocab_size": 700}, r"model\.safetensors: model\.embed_tokens\.weight is \(600, 64\); expected \(700, 64\)"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\..* is missing; expected"),
        ({"num_hidden_layers": 1}, r"model\.safetensors: model\.layers\.1\..* is unknown"),
        ({"model_parallel_size": 1}, r"q_norm\.weight: heads differ within one of 1 shards"),
        ({"tie_word_embeddings": True}, r"config\.json: tie_word_embeddings is True"),
        ({"num_attention_heads": 5}, r"config\.json: not a model that Calumma can represent"),
    ):
        store.put("config.json", json.dumps(config | change).encode())
        with pytest.raises(StoreError, match=said), open_import(find_model(store.root)) as found:
            dict(found.weights)


def test_an_export_on_s3_is_the_same_and_is_checked_there(
    transformer: Transformer, tokenizers: Tokenizers, finetuned: Storage, tmp_path: Path, s3_bucket: str
) -> None:
    here, there = Storage(tmp_path), Storage(s3_bucket)
    for store in (here, there):
        export_folder(store, transformer.config, transformer.state_dict(), tokenizers, 64, 100_000)
        save_original(store.sub("original"), transformer.config, VOCABULARY.size, transformer.state_dict())
    assert [f.name for f in here.find()] == [f.name for f in there.find()]
    assert all(here.get(f.name) == there.get(f.name) for f in here.find() if not f.name.endswith(".pth"))
    assert check_export(there, finetuned, tokenizers, 64)["max_abs_diff"] < 1e-4
    check_original(there.sub("original"), finetuned)


def test_the_original_layout_is_checked_after_writing(
    transformer: Transformer, finetuned: Storage, tmp_path: Path
) -> None:
    store = Storage(tmp_path)
    save_original(store, transformer.config, VOCABULARY.size, transformer.state_dict())
    check_original(store, finetuned)
    other = Transformer(transformer.config, VOCABULARY.size).initialise(1)
    save_original(store, transformer.config, VOCABULARY.size, other.state_dict())
    with pytest.raises(StepFailed, match="differs after a round trip"):
        check_original(store, finetuned)
