"""Export to transformers: the same codes, also from a tokenizer with fewer groups than transformers has."""

from __future__ import annotations

import pytest
import torch

from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.convert import to_transformers
from model.image_tokenizer.vqgan import VQModel, normalise


@pytest.mark.parametrize(
    ("groups", "channels", "multipliers"), [(32, 32, (1, 2)), (4, 16, (1, 2, 4, 4)), (8, 8, (1, 1, 2)), (1, 5, (1, 3))]
)
def test_codes_survive(groups: int, channels: int, multipliers: tuple[int, ...]) -> None:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    config = ImageTokenizerConfig(
        resolution=32,
        codes=40,
        channels=channels,
        multipliers=multipliers,
        residual_blocks=1,
        z_channels=24,
        embed_dim=8,
        norm_groups=groups,
    )
    torch.manual_seed(0)
    model = VQModel(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.1 * torch.randn_like(parameter)
    x_BCHW = normalise(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8))
    with torch.no_grad():
        z_BCHW = model.latents(x_BCHW)
        z_ND = z_BCHW.permute(0, 2, 3, 1).reshape(-1, 8)
        model.quantize.embedding.weight.copy_(z_ND[torch.randperm(len(z_ND))[:40]])
        arguments, state = to_transformers(config, model.state_dict())
        peer = ChameleonVQVAE(ChameleonVQVAEConfig(**arguments)).eval()
        peer.load_state_dict(state)  # strict: neither missing nor unexpected
        theirs = peer.encode(x_BCHW)
        assert torch.allclose(peer.quant_conv(theirs.last_hidden_state), z_BCHW, atol=2e-5)
        assert torch.equal(theirs.image_tokens.view(8, -1), model.encode(x_BCHW))
    assert model.encode(x_BCHW).unique().numel() > 10
