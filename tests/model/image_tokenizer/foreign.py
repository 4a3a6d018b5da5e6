"""Weights as others keep them, with random values: taming's checkpoint, and folders of ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from model.image_tokenizer.config import ImageTokenizerConfig
from model.image_tokenizer.vqgan import VQModel, normalise

SMALL = ImageTokenizerConfig(
    resolution=32, codes=64, channels=32, multipliers=(1, 2, 2), residual_blocks=2, z_channels=48, embed_dim=16
)


def random_model(config: ImageTokenizerConfig = SMALL, seed: int = 0) -> VQModel:
    """Norms and biases that matter, and a codebook among the latents, so that many codes are in play."""
    torch.manual_seed(seed)
    model = VQModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
        z_BDHW = model.latents(normalise(pictures(1 if config.resolution > 100 else 16, config.resolution)))
        latents_ND = z_BDHW.permute(0, 2, 3, 1).reshape(-1, config.embed_dim)
        entries_KD = latents_ND[torch.randint(len(latents_ND), (config.codes,))]
        model.quantize.embedding.weight.copy_(entries_KD + 0.1 * latents_ND.std(0) * torch.randn_like(entries_KD))
    return model


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """uint8 (count, 3, side, side), coarse blocks with grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, max(2, side // 8), max(2, side // 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse * 255, side, mode="bilinear")
    return (smooth + 8 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def taming_yaml(config: ImageTokenizerConfig, **dd: Any) -> dict[str, Any]:
    ddconfig = {
        **{"double_z": False, "z_channels": config.z_channels, "resolution": config.resolution, "in_channels": 3},
        **{"out_ch": 3, "ch": config.channels, "ch_mult": list(config.multipliers), "attn_resolutions": []},
        **{"num_res_blocks": config.residual_blocks, "dropout": 0.0},
        **dd,
    }
    params = {"embed_dim": config.embed_dim, "n_embed": config.codes, "ddconfig": ddconfig}
    return {"model": {"base_learning_rate": 4.5e-6, "target": "taming.models.vqgan.VQModel", "params": params}}


def write_taming(folder: Path, model: VQModel, description: dict[str, Any] | None = None, **more: Any) -> Path:
    """``vqgan.ckpt`` with entries of a training's losses, and ``vqgan.yaml``."""
    state = dict(model.state_dict()) | {"loss.perceptual_loss.lin0.model.1.weight": torch.ones(1, 64, 1, 1)}
    path = folder / "vqgan.ckpt"
    torch.save({"epoch": 3, "global_step": 17, "state_dict": state, **more}, path)
    (folder / "vqgan.yaml").write_text(yaml.safe_dump(description or taming_yaml(model.config)))
    return path


def vqvae(model: VQModel) -> Any:
    """``transformers``' encoder with the model's weights, copied by their names."""
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    peer = ChameleonVQVAE(ChameleonVQVAEConfig(**vq_arguments(model.config))).eval()
    peer.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("decoder.")})
    return peer


def vq_arguments(config: ImageTokenizerConfig) -> dict[str, Any]:
    return {
        "embed_dim": config.embed_dim,
        "num_embeddings": config.codes,
        "latent_channels": config.z_channels,
        "resolution": config.resolution,
        "base_channels": config.channels,
        "channel_multiplier": list(config.multipliers),
        "num_res_blocks": config.residual_blocks,
    }


def whole_chameleon(model: VQModel) -> Any:
    """A tiny ``ChameleonForConditionalGeneration`` whose image tokenizer this is."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    names = {"<image>": 8, "<racm3:break>": 9, "<eoss>": 10, "<reserved08706>": 11}
    names |= {f"IMGIMG{'ABCDEFGHIJ'[i % 10]}{'ABCDEFGHIJ'[i // 10]}Z": 20 + i for i in range(model.config.codes)}
    config = ChameleonConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocabulary_map=names,
        vq_config=vq_arguments(model.config),
    )
    whole = ChameleonForConditionalGeneration(config).eval()
    whole.model.vqmodel.load_state_dict(vqvae(model).state_dict())
    return whole
