from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from infra.errors import StepFailed
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.load import ImageTokenizer
from model.image_tokenizer.vqgan import VQModel
from model.text_tokenizer.config import TextTokenizerConfig
from model.text_tokenizer.train import train
from model.transformer.config import TransformerConfig
from model.transformer.model import Transformer
from model.vocabulary import Vocabulary
from tasks.artifacts import Tokenizers
from tasks.export import check_export, export_files

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


def test_transformers_computes_the_same_and_writes_text(transformer: Transformer, tokenizers: Tokenizers) -> None:
    files = export_files(transformer, tokenizers, 64)
    facts = check_export(files, transformer, tokenizers, 64)
    assert facts["max_abs_diff"] < 1e-4
    assert facts["equal_codes"] > 0.99
    assert isinstance(facts["generated"]["text"], str)
    config = json.loads(files["config.json"])
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

    for name, data in export_files(transformer, tokenizers, 128).items():
        (tmp_path / name).write_bytes(data)
    processor = CalummaProcessor.from_pretrained(tmp_path)
    theirs = ChameleonForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
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


def test_the_same_model_gives_the_same_bytes(transformer: Transformer, tokenizers: Tokenizers) -> None:
    assert export_files(transformer, tokenizers, 64) == export_files(transformer, tokenizers, 64)


def test_a_wrong_conversion_is_not_committed(transformer: Transformer, tokenizers: Tokenizers) -> None:
    files = export_files(transformer, tokenizers, 64)
    other = Transformer(transformer.config, VOCABULARY.size).initialise(1).eval()
    with pytest.raises(StepFailed, match="hidden states differ"):
        check_export(files, other, tokenizers, 64)
