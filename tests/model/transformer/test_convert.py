"""Parity with transformers' Chameleon, both ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infra.errors import StoreError
from model.transformer.config import TransformerConfig
from model.transformer.convert import (
    from_transformers,
    from_transformers_config,
    to_transformers,
    transformers_config,
)
from model.transformer.model import Transformer
from model.vocabulary import Vocabulary

VOCABULARY = Vocabulary(image_codes=16, text_start=32, size=512)
SHAPES = {
    "pre": TransformerConfig(dim=64, layers=3, heads=4, ffn=96, dropout=0),
    "reordered": TransformerConfig(dim=64, layers=3, heads=4, ffn=96, dropout=0, norm="reordered"),
    "grouped": TransformerConfig(dim=64, layers=2, heads=8, kv_heads=4, ffn=96, qk_norm_shards=2, rope_theta=500.0),
    "reordered and grouped": TransformerConfig(
        dim=64, layers=3, heads=8, kv_heads=4, ffn=96, qk_norm_shards=4, dropout=0, norm="reordered"
    ),
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
    state = dict(to_transformers(model.state_dict(), model.config))
    missing, unexpected = other.load_state_dict(state, strict=False)
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
        masked = other(input_ids=tokens).logits
    assert want.abs().mean() > 0.1  # the comparison is of something
    # Why the comparison goes through lm_head: their logits of image codes say nothing, in any forward pass.
    codes = slice(4, 4 + VOCABULARY.image_codes)
    assert (masked[..., codes] == torch.finfo(masked.dtype).min).all()
    assert (masked[..., codes.stop :] - model.logits(hidden)[..., codes.stop :]).abs().max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_every_layers_hidden_states_equal_theirs(shape: str) -> None:
    model = random_model(SHAPES[shape])
    other = theirs(model)
    ours: list[torch.Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, out: ours.append(out))
    tokens = torch.randint(0, VOCABULARY.size, (2, 21), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model(tokens)
        states = other.model(tokens, output_hidden_states=True).hidden_states
    assert len(states) == len(ours) + 1
    # The last of theirs is after the final norm, which the test above compares.
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(ours[:-1], states[1:-1], strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_their_configuration_is_read_back(shape: str) -> None:
    config = SHAPES[shape]
    written = {"model_type": "chameleon", **transformers_config(config, 512)}
    assert from_transformers_config(written) == (
        config.model_copy(update={"dropout": 0.0, "kv_heads": config.n_kv_heads}),
        512,
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; expected 'chameleon'"),
        ({"attention_bias": True}, "attention_bias is True.*expected False"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06"),
    ],
)
def test_configurations_that_ours_cannot_hold_are_refused(change: dict[str, Any], said: str) -> None:
    written = {"model_type": "chameleon", **transformers_config(SHAPES["pre"], 512)}
    with pytest.raises(StoreError, match=said):
        from_transformers_config(written | change)
    del written["hidden_size"]
    with pytest.raises(StoreError, match="hidden_size is missing"):
        from_transformers_config(written)


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_is_the_same_bits(shape: str) -> None:
    model = random_model(SHAPES[shape])
    back = from_transformers(to_transformers(model.state_dict(), model.config), model.config)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], w) for name, w in model.state_dict().items())


def test_heads_that_differ_within_a_shard_are_refused() -> None:
    model = random_model(SHAPES["grouped"])
    weights = to_transformers(model.state_dict(), model.config)
    with pytest.raises(StoreError, match=r"layers\.0\.self_attn\.q_norm\.weight: heads differ.*qk_norm_shards"):
        dict(from_transformers(weights, model.config.model_copy(update={"qk_norm_shards": 1})))


def test_a_missing_tensor_is_named() -> None:
    model = random_model(SHAPES["pre"])
    weights = dict(to_transformers(model.state_dict(), model.config))
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(StoreError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        from_transformers(weights, model.config)


def test_models_that_their_classes_cannot_hold_are_refused() -> None:
    with pytest.raises(StoreError, match="qk_norm"):
        transformers_config(TransformerConfig(dim=64, heads=4, qk_norm=False), 512)
