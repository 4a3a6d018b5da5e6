"""The VQ-GAN's layout, size and arithmetic, against the figures in the paper's checkpoints and against transformers."""

from __future__ import annotations

import pytest
import torch

from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.vqgan import VQModel, normalise, to_pixels

SMALL = ImageTokenizerConfig(
    resolution=32, codes=64, channels=32, multipliers=(1, 2, 2), residual_blocks=2, z_channels=48, embed_dim=16
)


def test_the_defaults_have_chameleons_size() -> None:
    with torch.device("meta"):
        model = VQModel(ImageTokenizerConfig())
    assert sum(p.numel() for p in model.encoder.parameters()) == 27_194_880
    assert sum(p.numel() for p in model.decoder.parameters()) == 39_294_851
    assert sum(p.numel() for p in model.parameters()) == 68_718_467
    assert ImageTokenizerConfig().codes_per_image == 1024


def test_names_are_tamings() -> None:
    with torch.device("meta"):
        names = set(VQModel(ImageTokenizerConfig()).state_dict())
    for name in (
        "encoder.conv_in.weight",
        "encoder.down.0.block.1.norm2.bias",
        "encoder.down.2.block.0.nin_shortcut.weight",
        "encoder.down.3.downsample.conv.weight",
        "encoder.mid.attn_1.proj_out.weight",
        "encoder.norm_out.weight",
        "quant_conv.weight",
        "quantize.embedding.weight",
        "post_quant_conv.bias",
        "decoder.up.4.block.2.conv1.weight",
        "decoder.up.1.upsample.conv.bias",
        "decoder.mid.block_2.conv2.weight",
        "decoder.conv_out.weight",
    ):
        assert name in names
    assert "encoder.down.4.downsample.conv.weight" not in names
    assert "decoder.up.0.upsample.conv.weight" not in names


def test_codes_equal_those_of_transformers() -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    torch.manual_seed(0)
    model = VQModel(SMALL).eval()
    x_BCHW = normalise(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8))
    with torch.no_grad():  # a codebook among the latents, so that many codes are in play
        model.quantize.embedding.weight.copy_(model.latents(x_BCHW).permute(0, 2, 3, 1).reshape(-1, 16)[::16])
    peer = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=SMALL.embed_dim,
            num_embeddings=SMALL.codes,
            latent_channels=SMALL.z_channels,
            resolution=SMALL.resolution,
            base_channels=SMALL.channels,
            channel_multiplier=list(SMALL.multipliers),
            num_res_blocks=SMALL.residual_blocks,
        )
    ).eval()
    ours = {k: v for k, v in model.state_dict().items() if not k.startswith("decoder.")}
    assert not peer.load_state_dict(ours, strict=False).missing_keys
    with torch.no_grad():
        latents_BCHW = model.latents(x_BCHW)
        codes_BN = model.encode(x_BCHW)
        theirs = peer.encode(x_BCHW)
    assert torch.allclose(peer.quant_conv(theirs.last_hidden_state), latents_BCHW, atol=1e-5)
    assert codes_BN.shape == (16, 64)
    assert torch.equal(codes_BN.flatten(), theirs.image_tokens.flatten())
    assert codes_BN.unique().numel() > 20


def test_shapes_and_gradients() -> None:
    torch.manual_seed(0)
    model = VQModel(SMALL)
    out = model(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert out.reconstruction_BCHW.shape == (2, 3, 32, 32)
    assert out.latents_BCHW.shape == (2, 16, 8, 8)
    assert out.codes_BN.shape == (2, 64)
    (out.reconstruction_BCHW.abs().mean() + out.commitment + out.codebook).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.encoder.conv_in.weight.grad is not None
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0  # straight through the quantiser


def test_decoding_codes_is_what_the_forward_pass_reconstructs() -> None:
    torch.manual_seed(0)
    model = VQModel(SMALL).eval()
    model.quantize.embedding.weight.data.normal_()
    x_BCHW = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        out = model(x_BCHW)
        assert torch.allclose(model.decode(out.codes_BN), out.reconstruction_BCHW, atol=1e-5)
        with pytest.raises(ValueError, match="8x8"):
            model.decode(out.codes_BN[:, :-1])


def test_without_quantisation_the_latents_pass() -> None:
    torch.manual_seed(0)
    model = VQModel(SMALL).eval()
    with torch.no_grad():
        out = model(torch.rand(1, 3, 32, 32), quantised=False)
        assert torch.equal(out.reconstruction_BCHW, model.decode_latents(out.latents_BCHW))
    assert float(out.commitment) == float(out.codebook) == 0


def test_pixels_survive_the_way_to_float_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_pixels(normalise(pixels)), pixels)
    assert normalise(pixels).min() == -1
    assert normalise(pixels).max() == 1
    assert to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    "wrong", [{"channels": 48}, {"norm_groups": 5}, {"resolution": 36, "multipliers": (1, 1, 1, 1)}, {"codes": 0}]
)
def test_impossible_configurations_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageTokenizerConfig(**wrong)  # type: ignore[arg-type]
