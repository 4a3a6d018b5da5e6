"""The finished tokenizer: encode, decode, save, load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from infra.errors import StoreError
from infra.storage import Storage
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.load import CONFIG, WEIGHTS, ImageTokenizer, load_image_tokenizer, save_image_tokenizer
from model.image_tokenizer.vqgan import VQModel

SMALL = ImageTokenizerConfig(
    resolution=16, codes=32, channels=32, multipliers=(1, 1), residual_blocks=1, z_channels=16, embed_dim=8
)


@pytest.fixture
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    model = VQModel(SMALL)
    model.quantize.embedding.weight.data.normal_()
    return ImageTokenizer(model)


def pictures(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def test_pictures_to_codes_and_back(tokenizer: ImageTokenizer) -> None:
    codes = tokenizer.encode(pictures(3))
    assert codes.shape == (3, 64)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < 32
    back = tokenizer.decode(codes)
    assert back.shape == (3, 3, 16, 16)
    assert back.dtype == torch.uint8


def test_wrong_input_is_refused(tokenizer: ImageTokenizer) -> None:
    with pytest.raises(ValueError, match="uint8"):
        tokenizer.encode(pictures(1).float())
    with pytest.raises(ValueError, match="16, 16"):
        tokenizer.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="0 to 31"):
        tokenizer.decode(torch.full((1, 64), 32))


def test_what_is_saved_is_what_is_loaded(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    store = Storage(tmp_path / "a")
    entries = save_image_tokenizer(store, SMALL, tokenizer.model.state_dict())
    assert [e.name for e in entries] == [CONFIG, WEIGHTS]
    loaded = load_image_tokenizer(store)
    assert loaded.config == SMALL
    assert torch.equal(loaded.encode(pictures(5)), tokenizer.encode(pictures(5)))
    again = save_image_tokenizer(Storage(tmp_path / "b"), SMALL, loaded.model.state_dict())
    assert again == entries  # the same bytes


def test_damaged_or_foreign_files_are_named(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    store = Storage(tmp_path)
    with pytest.raises(StoreError, match="no such file"):
        load_image_tokenizer(store)
    save_image_tokenizer(store, SMALL, tokenizer.model.state_dict())
    whole = store.get(CONFIG)
    for change, message in (
        ({"format": "calumma-image-tokenizer 2"}, "version 2"),
        ({"format": "something-else 1"}, "something-else"),
        ({"channels": 64}, "not the weights"),
        ({"colour": 1}, "colour"),
    ):
        store.put(CONFIG, json.dumps({**json.loads(whole), **change}).encode())
        with pytest.raises(StoreError, match=message):
            load_image_tokenizer(store)
    store.put(CONFIG, b"{")
    with pytest.raises(StoreError, match=r"config\.json"):
        load_image_tokenizer(store)
    store.put(CONFIG, whole)
    store.put(WEIGHTS, store.get(WEIGHTS)[:100])
    with pytest.raises(StoreError, match=r"model\.safetensors"):
        load_image_tokenizer(store)
