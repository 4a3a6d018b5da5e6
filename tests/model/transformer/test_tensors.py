from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from infra.errors import StoreError
from infra.storage import Storage
from model.transformer.config import TransformerConfig
from model.transformer.load import load_transformer, open_weights, save_transformer
from model.transformer.model import Transformer
from model.transformer.tensors import INDEX, WEIGHTS, LazyTensors, plan_shards, save_tensors, weight_files

SHAPES = {"a": (4, 8), "b": (16,), "c": (64, 8), "d": (3,)}


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 100))
def test_shards_keep_the_order_and_their_size(sizes: list[int], most: int) -> None:
    named = {str(i): size for i, size in enumerate(sizes)}
    shards = plan_shards(named, most)
    assert [name for shard in shards for name in shard] == list(named)
    assert all(shards)
    for shard, following in zip(shards, [*shards[1:], None], strict=True):
        held = sum(named[name] for name in shard)
        assert held <= most or len([n for n in shard if named[n]]) == 1
        assert following is None or held + named[following[0]] > most


class Watched(LazyTensors):
    """Tensors made on demand; ``alive`` remembers the most elements that were asked for between two writes."""

    def __init__(self, store: Storage) -> None:
        self.log: list[tuple[int, str]] = []
        self.store = store
        super().__init__({name: lambda shape=shape: torch.randn(shape) for name, shape in SHAPES.items()})

    def __getitem__(self, name: str) -> Tensor:
        self.log.append((len(self.store.list(suffix=".safetensors")), name))
        return super().__getitem__(name)


def test_shards_are_made_one_after_the_other(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    tensors = Watched(store)
    names = save_tensors(store, tensors, SHAPES, torch.float32, 256)
    # Nothing of a shard is asked for before the shard ahead of it is written.
    assert tensors.log == [(0, "a"), (0, "b"), (1, "c"), (2, "d")]
    assert names == [*(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)), INDEX]
    index = json.loads(store.get(INDEX))
    assert index["metadata"]["total_size"] == 4 * (32 + 16 + 512 + 3)
    for tensor, file in index["weight_map"].items():
        with safe_open(tmp_path / file, framework="pt") as f:
            assert tuple(f.get_slice(tensor).get_shape()) == SHAPES[tensor]
    with open_weights(store) as weights:
        assert set(weights) == set(SHAPES)
        assert weights.shape("c") == (64, 8)
        assert weights.file_of["c"].name == names[1]


def test_another_cut_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    tensors = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    for most in (256, 10**6, 256):
        save_tensors(store, tensors, SHAPES, torch.float32, most)
        with open_weights(store) as weights:
            assert all(torch.equal(weights[name], w) for name, w in tensors.items())
            assert (len(weight_files(store)) == 1) == (most > 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_transformer_in_shards_is_the_same_transformer(tmp_path: Path, dtype: torch.dtype) -> None:
    config = TransformerConfig(dim=32, layers=2, heads=4, ffn=48)
    model = Transformer(config, 100).initialise(0).to(dtype)
    files = save_transformer(Storage(tmp_path), config, 100, model.state_dict(), 20_000)
    assert len(files) > 4
    back = load_transformer(Storage(tmp_path)).state_dict()
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], w) and back[name].dtype == dtype for name, w in model.state_dict().items())


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    store = Storage(tmp_path)
    with pytest.raises(StoreError, match=r"no such file, and no model\.safetensors\.index\.json"):
        weight_files(store)
    files = save_tensors(store, {n: torch.zeros(s) for n, s in SHAPES.items()}, SHAPES, torch.float32, 256)
    store.delete(files[1])
    with pytest.raises(StoreError, match=r"model-00002-of-00003\.safetensors: no such file; .*names it"):
        weight_files(store)
    store.put(files[1], b"not safetensors")
    with pytest.raises(StoreError, match="not a safetensors file"), open_weights(store):
        pass
    for index in (b"[]", b"{", b'{"weight_map": 3}', b'{"weight_map": {}}', b'{"weight_map": {"a": "../x"}}'):
        store.put(INDEX, index)
        with pytest.raises(StoreError, match=r"not an index|expected files of the same folder"):
            weight_files(store)
    store.put(WEIGHTS, b"")
    with pytest.raises(StoreError, match="not a safetensors file"), open_weights(store):
        pass
