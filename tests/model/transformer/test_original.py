"""The original layout: computed by hand as its shards would be, and there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infra.errors import StoreError
from infra.storage import Storage
from model.transformer.config import TransformerConfig
from model.transformer.foreign_files import find_model
from model.transformer.importing import open_import
from model.transformer.load import save_transformer
from model.transformer.model import Transformer
from model.transformer.original import PARAMS, in_halves, in_pairs, save_original, to_original

V = 64
SHAPES = {
    "one shard": TransformerConfig(dim=32, layers=2, heads=4, ffn=48, dropout=0),
    "one shard, grouped": TransformerConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, dropout=0, norm="reordered"),
    "four shards": TransformerConfig(dim=64, layers=2, heads=8, ffn=96, dropout=0, qk_norm_shards=4),
    "four shards, grouped": TransformerConfig(
        dim=64, layers=2, heads=8, kv_heads=4, ffn=96, dropout=0, qk_norm_shards=4, norm="reordered", rope_theta=500.0
    ),
}


def random_model(config: TransformerConfig) -> Transformer:
    model = Transformer(config, V).initialise(3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(torch.empty_like(p).normal_(0, 0.3, generator=generator))
    return model


def by_hand(shards: list[dict[str, Tensor]], config: TransformerConfig, tokens: Tensor) -> Tensor:
    """Logits as model-parallel workers would compute them: each its heads, with rotary channels in pairs."""
    t, c = len(tokens), config.head_dim
    angles = torch.arange(t)[:, None] * config.rope_theta ** (-torch.arange(0, c, 2) / c)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config.norm_eps).rsqrt() * weight

    def attention(shard: dict[str, Tensor], layer: str, x: Tensor) -> Tensor:
        q, k, v = ((x @ shard[f"{layer}attention.w{n}.weight"].T).view(t, -1, c) for n in "qkv")

        def turned(y: Tensor, norm: str) -> Tensor:
            y = F.layer_norm(y, (c,), *(shard[f"{layer}attention.{norm}.{kind}"] for kind in ("weight", "bias")))
            return torch.view_as_real(torch.view_as_complex(y.reshape(t, -1, c // 2, 2)) * turn).flatten(2)

        q, k = turned(q, "q_normalization"), turned(k, "k_normalization")
        k, v = (y.repeat_interleave(q.shape[1] // k.shape[1], 1) for y in (k, v))
        scores = torch.einsum("thc,shc->hts", q, k) * c**-0.5
        weights = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -torch.inf).softmax(-1)
        return torch.einsum("hts,shc->thc", weights, v).flatten(1) @ shard[layer + "attention.wo.weight"].T

    def feed_forward(shard: dict[str, Tensor], layer: str, x: Tensor) -> Tensor:
        w1, w2, w3 = (shard[f"{layer}feed_forward.w{n}.weight"] for n in "123")
        return (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T

    x = torch.cat([shard["tok_embeddings.weight"][tokens] for shard in shards], -1)
    for i in range(config.layers):
        layer = f"layers.{i}."
        for part, norm in ((attention, "attention_norm"), (feed_forward, "ffn_norm")):
            weight = shards[0][f"{layer}{norm}.weight"]

            def added(y: Tensor, part: Callable[..., Tensor] = part, layer: str = layer) -> Tensor:
                return torch.stack([part(shard, layer, y) for shard in shards]).sum(0)

            x = x + (added(rms(x, weight)) if config.norm == "pre" else rms(added(x), weight))
    x = rms(x, shards[0]["norm.weight"])
    return torch.cat([x @ shard["output.weight"].T for shard in shards], -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_shards_compute_what_our_model_computes(shape: str) -> None:
    model = random_model(SHAPES[shape])
    shards = [dict(shard) for shard in to_original(model.state_dict(), model.config)]
    assert len(shards) == model.config.qk_norm_shards
    tokens = torch.randint(0, V, (19,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = by_hand(shards, model.config, tokens)
        have = model.logits(model(tokens[None]))[0]
    assert (want - have).abs().max() < 1e-4
    assert want.abs().mean() > 0.1


def saved(folder: Path, shape: str, dtype: torch.dtype = torch.float32) -> Transformer:
    model = random_model(SHAPES[shape]).to(dtype)
    save_original(Storage(folder), model.config, V, model.state_dict())
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back_is_the_same_bits(tmp_path: Path, shape: str, dtype: torch.dtype) -> None:
    model = saved(tmp_path, shape, dtype)
    want = {"consolidated.pth"} if "one" in shape else {f"consolidated.0{i}.pth" for i in range(4)}
    assert {p.name for p in tmp_path.iterdir()} == want | {PARAMS}
    with open_import(find_model(str(tmp_path))) as found:
        assert found.config == model.config.model_copy(update={"kv_heads": model.config.n_kv_heads})
        assert found.vocabulary_size == V
        assert found.dtype == str(dtype).removeprefix("torch.")
        assert found.weights.keys() == model.state_dict().keys()
        assert all(torch.equal(found.weights[name], w) for name, w in model.state_dict().items())
        save_transformer(Storage(tmp_path / "ours"), found.config, V, found.weights)
    with open_import(find_model(str(tmp_path / "ours"))) as again:
        assert all(torch.equal(again.weights[name], w) for name, w in model.state_dict().items())


def test_a_shard_holds_its_part_and_no_more(tmp_path: Path) -> None:
    model = saved(tmp_path, "four shards")
    whole = sum(p.numel() for p in model.parameters()) * 4
    assert all(p.stat().st_size < whole / 2 for p in tmp_path.glob("*.pth"))


def test_pairs_and_halves() -> None:
    rows = torch.arange(8)  # two heads of four channels
    assert in_pairs(rows, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert in_halves(in_pairs(rows, 2), 2).tolist() == rows.tolist()


def test_parameters_of_the_release_may_be_nested(tmp_path: Path) -> None:
    model = saved(tmp_path, "one shard")
    params = json.loads((tmp_path / PARAMS).read_text())
    (tmp_path / PARAMS).write_text(json.dumps({"tokenizer": "x"}))
    model_part = {k: v for k, v in params.items() if k not in ("ffn_dim", "n_kv_heads")}
    nested = {"model": model_part, "model_parallel_size": 1}
    (tmp_path / "consolidate_params.json").write_text(json.dumps(nested))
    with open_import(find_model(str(tmp_path))) as found:
        assert found.config.ffn == model.config.ffn


def changed(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    if file == PARAMS:
        said = json.loads((folder / file).read_text())
        change(said)
        (folder / file).write_text(json.dumps(said))
        return
    shard = torch.load(folder / file, weights_only=True)
    change(shard)
    torch.save(shard, folder / file)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda found: found.pop(name)


def with_(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda found: found.update({name: value})


WK, WO = "layers.1.attention.wk.weight", "layers.0.attention.wo.weight"
BIAS, FFN_NORM = "layers.0.attention.wq.bias", "layers.1.ffn_norm.weight"


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("02.pth", without(WK), r"02\.pth: layers\.1\.attention\.wk\.weight is missing; expected \(16, 64\)"),
        (
            "01.pth",
            with_(WO, torch.zeros(64, 15)),
            r"01\.pth: .*wo\.weight is \(64, 15\); expected \(64, 16\)",
        ),
        (
            "00.pth",
            with_(BIAS, torch.zeros(16)),
            r"00\.pth: layers\.0\.attention\.wq\.bias is unknown.*biases of",
        ),
        ("00.pth", without("output.weight"), r"output\.weight is missing.*tied embeddings"),
        ("03.pth", with_("output.weight", torch.zeros(20, 64)), r"03\.pth: .* is \(20, 64\); expected \(16, 64\)"),
        ("03.pth", with_(FFN_NORM, torch.ones(64)), r"ffn_norm\.weight: is 1 at 0 in shard 3 and .* in shard 0"),
        ("01.pth", with_("norm.weight", torch.full((64,), torch.nan)), r"01\.pth: norm\.weight holds .* not finite"),
        ("01.pth", with_("norm.weight", torch.ones(64).int()), r"01\.pth: norm\.weight is of type torch\.int32"),
        (PARAMS, without("swin_norm"), r"params\.json: 'swin_norm' is missing"),
        (PARAMS, with_("model_parallel_size", 8), r"model_parallel_size is 8, and 4 files are there"),
        (PARAMS, with_("n_heads", 6), r"params\.json: not a model that Calumma can represent.*dim is 64 with 6 heads"),
    ],
)
def test_what_cannot_be_represented_is_refused(
    tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    saved(tmp_path, "four shards")
    changed(tmp_path, file if file == PARAMS else f"consolidated.{file}", change)
    with pytest.raises(StoreError, match=said), open_import(find_model(str(tmp_path))) as found:
        dict(found.weights)


def test_rotary_tables_are_passed_over(tmp_path: Path) -> None:
    model = saved(tmp_path, "one shard")
    changed(tmp_path, "consolidated.pth", lambda s: s.update({"rope.freqs": torch.ones(4)}))
    with open_import(find_model(str(tmp_path))) as found:
        assert found.weights.keys() == model.state_dict().keys()


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    saved(tmp_path, "four shards")
    (tmp_path / "consolidated.03.pth").rename(tmp_path / "kept")
    with (
        pytest.raises(StoreError, match=r"model_parallel_size is 4, and 3 files are there; expected 4"),
        open_import(find_model(str(tmp_path))),
    ):
        pass
    (tmp_path / "kept").rename(tmp_path / "consolidated.03.pth")
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(StoreError, match=r"consolidated\.01\.pth: no such file, and 3 of 4 shards are there"):
        find_model(str(tmp_path))
    (tmp_path / "consolidated.pth").touch()
    with pytest.raises(StoreError, match="lie together"):
        find_model(str(tmp_path))
    for path in tmp_path.glob("*.pth"):
        path.unlink()
    with pytest.raises(StoreError, match=r"no weights; expected consolidated\.pth"):
        find_model(str(tmp_path))
    (tmp_path / "consolidated.pth").write_bytes(b"what is this")
    with pytest.raises(StoreError, match="not a checkpoint that torch can map"), open_import(find_model(str(tmp_path))):
        pass
    with pytest.raises(StoreError, match=r"no such folder, or an empty one"):
        find_model(str(tmp_path / "elsewhere"))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was unpickled",))


def test_nothing_foreign_is_unpickled(tmp_path: Path) -> None:
    saved(tmp_path, "one shard")
    torch.save({"norm.weight": torch.ones(3), "more": Trap()}, tmp_path / "consolidated.pth")
    with pytest.raises(StoreError, match="nothing foreign is unpickled"), open_import(find_model(str(tmp_path))):
        pass
