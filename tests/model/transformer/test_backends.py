"""The backends against the one written out, forward and backward; those of GPUs: benchmarks/attention.py."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from infra.errors import ResourceError
from model.transformer import backends
from model.transformer.backends import (
    BACKENDS,
    PADDING,
    Backend,
    BySegments,
    Segments,
    choose,
    document_mask,
    masked,
    prepare,
    unavailable,
)

CPU = torch.device("cpu")
DOCUMENTS = {
    "documents": [[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9],
    "padding": [[0, 0, 0, 1, 1, 1, 1, PADDING, PADDING], [PADDING] * 9],
    "whole rows": None,
}
HEADS = {"as many": 4, "grouped": 2, "one": 1}


def qkv(kv: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(2, h, 9, 8, generator=g, dtype=torch.float32).to(dtype) for h in (4, kv, kv)]
    return [x.requires_grad_() for x in made]


def documents_of(pattern: str) -> Tensor | None:
    rows = DOCUMENTS[pattern]
    return None if rows is None else torch.tensor(rows, dtype=torch.int32)


def by_hand(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    """Position by position, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            g = h * k.shape[1] // q.shape[1]
            for t in range(q.shape[2]):
                seen = [s for s in range(t + 1) if documents is None or documents[b, s] == documents[b, t]]
                scores = torch.stack([q[b, h, t].double() @ k[b, g, s].double() for s in seen]) * q.shape[3] ** -0.5
                out[b, h, t] = scores.softmax(0) @ v[b, g, seen].double()
    return out


@pytest.mark.parametrize("pattern", DOCUMENTS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("backend", ["reference", "sdpa", "flex"])
def test_a_backend_computes_attention(backend: Backend, heads: str, pattern: str) -> None:
    q, k, v = (x.detach() for x in qkv(HEADS[heads]))
    documents = documents_of(pattern)
    with torch.no_grad():
        want = by_hand(q, k, v, documents)
        have = prepare(backend, documents, 2, 9, CPU, torch.float32)(q, k, v)
    assert have.shape == q.shape
    assert (want - have).abs().max() < 1e-5


@pytest.mark.parametrize("pattern", ["documents", "padding"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_document_by_document_is_as_under_a_mask(backend: Backend, heads: str, pattern: str) -> None:
    documents = documents_of(pattern)
    assert documents is not None
    cut = prepare(backend, documents, 2, 9, CPU, torch.float32)
    given = prepare(backend, documents, 2, 9, CPU, torch.float32, Segments.of(documents))
    assert isinstance(cut, BySegments)
    assert cut.lengths == {"documents": ((3, 4, 2), (9,)), "padding": ((3, 4, 2), (9,))}[pattern]
    assert given == cut
    results = []
    for attend in (cut, masked(backend, document_mask(documents), torch.float32)):
        q, k, v = qkv(HEADS[heads])
        y = attend(q, k, v)
        results.append((y, *torch.autograd.grad(y.square().sum(), (q, k, v))))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(*results, strict=True))


def test_segments_of_no_length_are_passed_over() -> None:
    borders = torch.tensor([0, 3, 9, 9, 12, 18, 18, 18], dtype=torch.int32)
    assert Segments(borders, 6).by_row(2, 9) == ((3, 6), (3, 6))


@pytest.mark.parametrize("pattern", DOCUMENTS)
@pytest.mark.parametrize("heads", HEADS)
def test_gradients_agree(heads: str, pattern: str) -> None:
    q, k, v = qkv(HEADS[heads])
    documents = documents_of(pattern)
    gradients = []
    for backend in ("reference", "sdpa"):
        y = prepare(backend, documents, 2, 9, CPU, torch.float32)(q, k, v)
        gradients.append(torch.autograd.grad(y.square().sum(), (q, k, v)))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(*gradients, strict=True))
    assert min(float(g.abs().max()) for g in gradients[0]) > 0.1


def test_flex_has_no_backward_on_cpus_and_that_is_why_it_is_not_offered() -> None:
    q, k, v = qkv()
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        prepare("flex", None, 2, 9, CPU, torch.float32)(q, k, v).sum().backward()  # type: ignore[no-untyped-call]


def test_the_gpus_backends_are_the_same_attention_over_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their kernels need a GPU; what they are given is checked with ones written out: layout, borders, heads."""
    import torch.nn.attention.varlen as varlen

    def flash(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, cu_k: Tensor, *longest: int, **how: object) -> Tensor:
        assert how == {"window_size": (-1, 0), "enable_gqa": q.shape[1] != k.shape[1]}
        assert torch.equal(cu, cu_k)
        assert cu.dtype == torch.int32
        assert longest == (int(cu.diff().max()),) * 2
        pieces = []
        for start, end in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
            piece = [x[start:end].transpose(0, 1)[None] for x in (q, k, v)]
            pieces.append(prepare("sdpa", None, 1, end - start, CPU, q.dtype)(*piece)[0].transpose(0, 1))
        return torch.cat(pieces)

    monkeypatch.setattr(varlen, "varlen_attn", flash)
    for kv in HEADS.values():
        for pattern in DOCUMENTS:
            q, k, v = qkv(kv)
            documents = documents_of(pattern)
            with torch.no_grad():
                have = prepare("varlen", documents, 2, 9, CPU, torch.float32)(q, k, v)
                assert (have - by_hand(q, k, v, documents)).abs().max() < 1e-5


def test_segments() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1], [1, 1, PADDING, PADDING, PADDING]])  # the second row begins anew
    found = Segments.of(documents)
    assert found.cu_seqlens.tolist() == [0, 2, 5, 7, 10]
    assert found.cu_seqlens.dtype == torch.int32
    assert found.longest == 3
    assert Segments.whole_rows(3, 4, CPU).cu_seqlens.tolist() == [0, 4, 8, 12]


def test_segments_are_the_loaders() -> None:
    import numpy as np

    from model.data.batch import make_batch
    from model.vocabulary import BOS, PAD, Vocabulary

    tokens = np.full((2, 16), BOS, np.uint16)
    tokens[1, 12:] = PAD
    starts = np.zeros((2, 16), np.bool_)
    starts[[0, 0, 1, 1], [0, 5, 0, 12]] = True
    batch = make_batch(tokens, starts, None, [0, 1], Vocabulary(image_codes=16, text_start=32, size=300), 4)
    found, given = Segments.of(batch["documents"]), batch["cu_seqlens"].tolist()
    assert given[: len(found.cu_seqlens)] == found.cu_seqlens.tolist()
    assert set(given[len(found.cu_seqlens) :]) == {32}
    assert int(batch["max_seqlen"]) == found.longest


def test_bfloat16_on_a_cpu_is_near_float32() -> None:
    want = prepare("sdpa", None, 2, 9, CPU, torch.float32)(*qkv())
    have = prepare("reference", None, 2, 9, CPU, torch.bfloat16)(*qkv(dtype=torch.bfloat16))
    assert have.dtype == torch.bfloat16
    assert (want - have.float()).abs().max() < 0.05


def test_any_mask_for_a_cache() -> None:
    q, k, v = qkv()
    mask = torch.rand(2, 1, 4, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[..., 0] = True
    a, b = (masked(backend, mask, torch.float32)(q[:, :, :4], k, v) for backend in ("reference", "flex"))
    assert (a - b).abs().max() < 1e-5


def test_mask_is_causal_inside_documents_and_never_empty() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, PADDING, PADDING]])
    mask = document_mask(documents)[0, 0]
    want = torch.zeros(7, 7, dtype=torch.bool)
    for first, last in ((0, 2), (2, 5), (5, 7)):
        want[first:last, first:last] = torch.ones(last - first, last - first).tril().bool()
    assert torch.equal(mask, want)


def test_auto_takes_what_is_fast_here_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    backends._choose.cache_clear()
    with caplog.at_level(logging.INFO, "calumma"):
        for _ in range(3):
            assert choose("auto", CPU, torch.float32, 8) == "sdpa"
            assert choose("auto", CPU, torch.bfloat16, 8) == "reference"
    assert caplog.messages == ["attention on cpu in float32: sdpa", "attention on cpu in bfloat16: reference"]


def test_auto_on_a_gpu_takes_the_first_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for works, want in ((BACKENDS, "varlen"), (("flex", "xformers"), "xformers"), (("flex",), "flex"), ((), "sdpa")):
        backends._choose.cache_clear()
        monkeypatch.setattr(backends, "unavailable", lambda name, *_, works=works: None if name in works else "no")
        assert choose("auto", torch.device("cuda", 0), torch.bfloat16, 64) == want
    backends._choose.cache_clear()


@pytest.mark.parametrize(
    ("wanted", "why"), [("flex", "no backward pass"), ("xformers", "needs a GPU"), ("varlen", "needs a GPU")]
)
def test_what_does_not_work_here_is_refused(wanted: Backend, why: str) -> None:
    with pytest.raises(ResourceError, match=rf"attention_backend: {wanted}.*{why}.*one of: auto, reference, sdpa\."):
        choose(wanted, CPU, torch.float32, 8)


def test_a_kernel_that_fails_when_tried_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(backends, "prepare", fails)
    assert unavailable.__wrapped__("varlen", "cuda:7", torch.float32, 8) == (
        "its kernels take bfloat16 and float16 only (resources.precision: bf16)"
    )
    assert "Error" in str(unavailable.__wrapped__("varlen", "cuda:7", torch.bfloat16, 8))
