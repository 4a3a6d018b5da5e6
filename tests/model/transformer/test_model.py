from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from infra.errors import ResourceError, StoreError
from infra.settings import ActivationCheckpointing, AttentionBackend
from infra.storage import Storage
from model.transformer.attention import KVCache
from model.transformer.backends import PADDING
from model.transformer.config import TransformerConfig
from model.transformer.load import CONFIG, load_transformer, meta_transformer, read_weights, save_transformer
from model.transformer.model import Transformer
from model.transformer.tensors import WEIGHTS

CONFIGS = {
    "pre": TransformerConfig(dim=32, layers=2, heads=4, ffn=48),
    "reordered": TransformerConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, norm="reordered"),
    "plain attention": TransformerConfig(dim=32, layers=2, heads=4, ffn=48, qk_norm=False),
}
V = 100


def model(name: str = "pre") -> Transformer:
    made = Transformer(CONFIGS[name], V).initialise(1).eval()
    with torch.no_grad():
        made.embedding.weight.mul_(50)  # so that tokens matter to an untrained model
    return made


def tokens(b: int, t: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (b, t), generator=torch.Generator().manual_seed(seed))


def test_seven_billion_parameters_exactly() -> None:
    with torch.device("meta"):
        seven = Transformer(TransformerConfig(), 65536)
    assert seven.parameter_count() == 7_013_158_912 == TransformerConfig().parameters(65536)


def test_thirty_four_billion() -> None:
    config = TransformerConfig(
        dim=8192, layers=48, heads=64, kv_heads=8, ffn=22016, norm="reordered", dropout=0, qk_norm_shards=4
    )
    with torch.device("meta"):
        large = Transformer(config, 65536)
    assert large.parameter_count() == config.parameters(65536)
    assert large.parameter_count() == pytest.approx(34.29e9, rel=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count_is_the_formulas(name: str) -> None:
    assert model(name).parameter_count() == CONFIGS[name].parameters(V)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_future_is_not_seen(name: str) -> None:
    x = tokens(1, 12)
    y = x.clone()
    y[0, 7] = (y[0, 7] + 1) % V
    with torch.no_grad():
        a, b = model(name)(x), model(name)(y)
    assert torch.equal(a[:, :7], b[:, :7])
    assert (a[:, 7:] - b[:, 7:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_are_as_if_alone(name: str) -> None:
    m, first, second = model(name), tokens(1, 5, 1), tokens(1, 7, 2)
    pad = torch.full((1, 3), 1)
    packed = torch.cat((first, second, pad), 1)
    documents = torch.tensor([[0] * 5 + [1] * 7 + [PADDING] * 3], dtype=torch.int32)
    positions = torch.tensor([[*range(5), *range(7), *range(3)]])
    with torch.no_grad():
        hidden = m(packed, documents, positions)
        assert (hidden[:, :5] - m(first)).abs().max() < 1e-5
        assert (hidden[:, 5:12] - m(second)).abs().max() < 1e-5
    assert torch.isfinite(hidden).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_cache_gives_what_a_whole_forward_gives(name: str) -> None:
    m, x = model(name), tokens(2, 10)
    cache = KVCache(m.config, 2, 10)
    with torch.no_grad():
        want = m(x)
        pieces = [m(x[:, :4], cache=cache), m(x[:, 4:5], cache=cache), m(x[:, 5:], cache=cache)]
    assert cache.position == 10
    assert (torch.cat(pieces, 1) - want).abs().max() < 1e-5


def test_cache_takes_prompts_of_unequal_length_padded_on_the_left() -> None:
    m, long, short = model(), tokens(1, 6, 1), tokens(1, 4, 2)
    batch = torch.cat((long, torch.cat((torch.full((1, 2), 1), short), 1)))
    documents = torch.zeros(2, 6, dtype=torch.int32)
    documents[1, :2] = PADDING
    cache, then = KVCache(m.config, 2, 8), tokens(2, 2, 3)
    with torch.no_grad():
        m(batch, documents, cache=cache)
        assert cache.next_B.tolist() == [6, 4]
        have = m(then, cache=cache)
        assert (have[0] - m(torch.cat((long, then[:1]), 1))[0, -2:]).abs().max() < 1e-5
        assert (have[1] - m(torch.cat((short, then[1:]), 1))[0, -2:]).abs().max() < 1e-5


def test_cache_rows_can_be_chosen_and_repeated() -> None:
    m, x = model(), tokens(2, 5)
    cache = KVCache(m.config, 2, 6)
    with torch.no_grad():
        m(x, cache=cache)
        cache.select(torch.tensor([1, 1, 0]))
        then = torch.tensor([[3], [4], [5]])
        have = m(then, cache=cache)
        want = m(torch.cat((x[[1, 1, 0]], then), 1))[:, -1:]
    assert (have - want).abs().max() < 1e-5


def test_a_full_cache_is_an_error() -> None:
    cache = KVCache(CONFIGS["pre"], 1, 4)
    with pytest.raises(ValueError, match="room for 4 positions and 5"):
        model()(tokens(1, 5), cache=cache)


def test_dropout_only_in_training_and_as_configured() -> None:
    m, x = model(), tokens(1, 6)
    assert torch.equal(m(x), m(x))
    m.train()
    assert not torch.equal(m(x), m(x))
    m.with_dropout(0.0)
    assert torch.equal(m(x), m(x))


def step(m: Transformer) -> list[torch.Tensor]:
    """The gradients of one step over packed documents, with dropout."""
    documents = torch.tensor([[0] * 3 + [1] * 5, [0] * 6 + [PADDING] * 2])
    torch.manual_seed(5)  # dropout must repeat in the recomputation
    m.loss(m(tokens(2, 8), documents), tokens(2, 8, 1), 1e-5).total.backward()
    return [p.grad for p in m.parameters() if p.grad is not None]


class Counted(TorchDispatchMode):
    """Counts operators by name, and in ``backward`` those of the backward pass alone."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name()] = self.counts.get(func.name(), 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_activation_checkpointing_changes_no_bit_of_the_gradients(name: str, backend: AttentionBackend) -> None:
    counted = {}
    gradients = {}
    kinds: tuple[ActivationCheckpointing, ...] = ("none", "selective", "full")
    for kind in kinds:
        with Counted() as counter:
            gradients[kind] = step(model(name).train().run_with(backend, kind))
        counted[kind] = counter.counts
    for kind in ("selective", "full"):
        assert all(torch.equal(a, b) for a, b in zip(gradients["none"], gradients[kind], strict=True))
    # Products are not computed again under selective, the norms and the activation are; under full all are.
    assert counted["none"]["aten::mm"] == counted["selective"]["aten::mm"] < counted["full"]["aten::mm"]
    assert counted["none"]["aten::silu"] < counted["selective"]["aten::silu"] == counted["full"]["aten::silu"]
    if backend == "sdpa":
        flash = "aten::_scaled_dot_product_flash_attention_for_cpu"
        assert counted["none"][flash] == counted["selective"][flash] < counted["full"][flash]
    else:
        assert counted["none"]["aten::bmm"] < counted["selective"]["aten::bmm"]


@pytest.mark.timeout(900)  # a C++ compiler's minute, and machines may be busy
@pytest.mark.parametrize("kind", ["none", "selective"])
def test_compiled_layers_train_the_same(kind: ActivationCheckpointing) -> None:
    want = step(model().with_dropout(0.0).train())
    have = step(model().with_dropout(0.0).train().run_with("auto", kind, compile=True))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(want, have, strict=True))


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"no 'no-such-compiler -O2'.*resources\.compile: false"):
        model().run_with(compile=True)


def test_a_backend_that_is_not_here_is_refused_at_the_first_forward() -> None:
    with pytest.raises(ResourceError, match="attention_backend: varlen does not work here"):
        model().run_with("varlen")(tokens(1, 5))


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    a, b, c = (Transformer(CONFIGS["pre"], V).initialise(s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    drawn = dict(meta_transformer(CONFIGS["pre"], V).draw(1))
    assert all(torch.equal(a[k], drawn[k]) for k in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])


def test_store_round_trip_and_its_errors(tmp_path: Path) -> None:
    store, m = Storage(tmp_path), model("reordered")
    assert save_transformer(store, m.config, V, m.state_dict()) == [CONFIG, WEIGHTS]
    back = load_transformer(store)
    assert not back.training
    assert back.config == m.config
    assert torch.equal(back(tokens(1, 5)), m(tokens(1, 5)))
    read = list(read_weights(store, meta_transformer(m.config, V)))
    assert [name for name, _ in read] == [name for name, _ in m.named_parameters()]
    assert all(torch.equal(weight, p) for (_, weight), p in zip(read, m.parameters(), strict=True))
    with pytest.raises(StoreError, match=r"embedding\.weight is .*, expected"):
        next(read_weights(store, meta_transformer(m.config, V + 1)))
    store.put(CONFIG, store.get(CONFIG).replace(b'"layers": 2', b'"layers": 3'))
    with pytest.raises(StoreError, match=r"layers\.2\.attention.* is missing"):
        load_transformer(store)
    store.put(CONFIG, b'{"format": "calumma-transformer", "version": 9}')
    with pytest.raises(StoreError, match="version 9"):
        load_transformer(store)
    store.put(CONFIG, b"[]")
    with pytest.raises(StoreError, match="not a stored transformer"):
        load_transformer(store)
    store.delete(CONFIG)
    with pytest.raises(StoreError, match="no such file"):
        load_transformer(store)
