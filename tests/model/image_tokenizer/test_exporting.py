"""The way out and back: the same tensors, bit for bit, and files that ``transformers`` loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from infra.errors import StoreError
from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.exporting import export_weights
from model.image_tokenizer.foreign_files import find_files
from model.image_tokenizer.importing import Imported, import_weights
from model.image_tokenizer.vqgan import VQModel, normalise
from tests.model.image_tokenizer.foreign import SMALL, pictures, random_model, taming_yaml, vqvae


def read(path: Path) -> Imported:
    with find_files(str(path)).on_disk() as files:
        return import_weights(files)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = random_model()
    written = export_weights(SMALL, model.state_dict(), "vqgan", str(tmp_path / "out.ckpt"))
    assert written == [str(tmp_path / "out.ckpt"), str(tmp_path / "out.yaml")]
    state = torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(w, state[name]) for name, w in model.state_dict().items())
    found = yaml.safe_load((tmp_path / "out.yaml").read_text())["model"]
    assert found["params"]["ddconfig"] == taming_yaml(SMALL)["model"]["params"]["ddconfig"]
    back = read(tmp_path / "out.ckpt")
    assert back.config == SMALL
    assert all(torch.equal(w, back.weights[name]) for name, w in model.state_dict().items())


def test_a_folder_of_transformers_comes_back_bit_for_bit(tmp_path: Path) -> None:
    from transformers import ChameleonVQVAE

    model = random_model()
    export_weights(SMALL, model.state_dict(), "transformers", str(tmp_path / "theirs"))
    peer = ChameleonVQVAE.from_pretrained(tmp_path / "theirs").eval()
    assert all(torch.equal(w, model.state_dict()[name]) for name, w in peer.state_dict().items())
    peer.save_pretrained(tmp_path / "again")
    back = read(tmp_path / "again")
    assert back.config == SMALL
    assert back.weights.keys() == peer.state_dict().keys()
    assert all(torch.equal(w, back.weights[name]) for name, w in peer.state_dict().items())
    images_BCHW = normalise(pictures(2, 32))
    with torch.no_grad():
        assert torch.equal(peer.encode(images_BCHW).image_tokens.view(2, -1), model.encode(images_BCHW))


def test_fewer_groups_leave_as_32_and_compute_the_same(tmp_path: Path) -> None:
    config = ImageTokenizerConfig(
        **{"resolution": 32, "codes": 40, "channels": 8, "multipliers": (1, 2, 2), "residual_blocks": 1},
        **{"z_channels": 24, "embed_dim": 8, "norm_groups": 8},
    )
    model = random_model(config)
    export_weights(config, model.state_dict(), "vqgan", str(tmp_path / "wide.ckpt"))
    wide = read(tmp_path / "wide.ckpt")
    assert wide.config == config.model_copy(update={"norm_groups": 32, "channels": 32})
    other = VQModel(wide.config).eval()
    other.load_state_dict(wide.weights)
    images_BCHW = normalise(pictures(3, 32))
    with torch.no_grad():
        codes_BN = model.encode(images_BCHW)
        assert torch.equal(other.encode(images_BCHW), codes_BN)
        assert torch.allclose(other.decode(codes_BN), model.decode(codes_BN), atol=1e-4)


def test_what_is_there_stays(tmp_path: Path) -> None:
    weights = random_model().state_dict()
    (tmp_path / "out.yaml").write_text("mine")
    with pytest.raises(StoreError, match=r"out\.yaml: exists already"):
        export_weights(SMALL, weights, "vqgan", str(tmp_path / "out.ckpt"))
    assert not (tmp_path / "out.ckpt").exists()
    assert (tmp_path / "out.yaml").read_text() == "mine"
    with pytest.raises(StoreError, match="name the checkpoint"):
        export_weights(SMALL, weights, "vqgan", str(tmp_path / "out.yaml"))


def test_an_encoder_alone_is_no_vqgan(tmp_path: Path) -> None:
    weights = vqvae(random_model()).state_dict()
    with pytest.raises(StoreError, match="an encoder only"):
        export_weights(SMALL, weights, "vqgan", str(tmp_path / "out.ckpt"))
    export_weights(SMALL, weights, "transformers", str(tmp_path / "theirs"))
    assert not read(tmp_path / "theirs").has_decoder
