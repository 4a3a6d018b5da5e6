"""Parity with transformers' Chameleon, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infra.errors import StoreError
from model.transformer.config import TransformerConfig
from model.transformer.convert import from_transformers, to_transformers, transformers_config
from model.transformer.model import Transformer
from model.vocabulary import Vocabulary

VOCABULARY = Vocabulary(image_codes=16, text_start=32, size=512)
SHAPES = {
    "pre": TransformerConfig(dim=64, layers=3, heads=4, ffn=96, dropout=0),
    "reordered": TransformerConfig(dim=64, layers=3, heads=4, ffn=96, dropout=0, norm="reordered"),
    "grouped": TransformerConfig(dim=64, layers=2, heads=8, kv_heads=4, ffn=96, qk_norm_shards=2, rope_theta=500.0),
}


def random_model(config: TransformerConfig) -> Transformer:
    """All weights random, the norms' too: a swapped weight or bias must show."""
    model = Transformer(config, VOCABULARY.size).initialise(3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(torch.empty_like(p).normal_(0, 0.3, generator=generator))
    return model


def theirs(model: Transformer) -> Any:
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    names = {VOCABULARY.name(i): i for i in range(VOCABULARY.text_start)}
    vq = {"base_channels": 32, "channel_multiplier": [1], "embed_dim": 8, "latent_channels": 8, "resolution": 8}
    config = ChameleonConfig(
        **transformers_config(model.config, VOCABULARY.size),
        vocabulary_map=names,
        vq_config={**vq, "num_embeddings": 16, "num_res_blocks": 1},
    )
    other = ChameleonForConditionalGeneration(config).eval()
    missing, unexpected = other.load_state_dict(to_transformers(model.state_dict(), model.config), strict=False)
    assert not unexpected
    assert all(name.startswith("model.vqmodel.") for name in missing)
    return other


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_and_logits_equal_theirs(shape: str) -> None:
    model = random_model(SHAPES[shape])
    other = theirs(model)
    tokens = torch.randint(0, VOCABULARY.size, (2, 37), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden, want = model(tokens), other.model(tokens)[0]
        assert (hidden - want).abs().max() < 1e-4
        assert (model.logits(hidden) - other.lm_head(want)).abs().max() < 1e-4
    assert want.abs().mean() > 0.1  # the comparison is of something


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_is_the_same_bits(shape: str) -> None:
    model = random_model(SHAPES[shape])
    back = from_transformers(to_transformers(model.state_dict(), model.config), model.config)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], w) for name, w in model.state_dict().items())


def test_heads_that_differ_within_a_shard_are_refused() -> None:
    model = random_model(SHAPES["grouped"])
    weights = to_transformers(model.state_dict(), model.config)
    with pytest.raises(StoreError, match="qk_norm_shards"):
        from_transformers(weights, model.config.model_copy(update={"qk_norm_shards": 1}))


def test_a_missing_tensor_is_named() -> None:
    model = random_model(SHAPES["pre"])
    weights = to_transformers(model.state_dict(), model.config)
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(StoreError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        from_transformers(weights, model.config)


def test_models_that_their_classes_cannot_hold_are_refused() -> None:
    with pytest.raises(StoreError, match="qk_norm"):
        transformers_config(TransformerConfig(dim=64, heads=4, qk_norm=False), 512)
