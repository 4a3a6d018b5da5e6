"""The quantiser's codes and losses, and k-means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from model.image_tokenizer import quantize
from model.image_tokenizer.quantize import VectorQuantizer, kmeans, nearest, sample_far


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 8), st.integers(0, 1000))
def test_nearest_is_nearest(count: int, codes: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_ND, e_KD = torch.randn(count, dim, generator=generator), torch.randn(codes, dim, generator=generator)
    found = (x_ND - e_KD[nearest(x_ND, e_KD)]).norm(dim=1)
    best = torch.cdist(x_ND.double(), e_KD.double()).amin(1)
    assert torch.allclose(found.double(), best, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50), st.integers(1, 400), st.integers(0, 1000))
def test_memory_changes_nothing(codes: int, memory: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_ND, e_KD = torch.randn(60, 4, generator=generator), torch.randn(codes, 4, generator=generator)
    whole = nearest(x_ND, e_KD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quantize.MEMORY, "cpu", memory)
        assert torch.equal(nearest(x_ND, e_KD), whole)


def test_of_equally_near_entries_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    e_KD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [0.0, 1.0]])
    x_ND = torch.cat([torch.zeros(1, 2), e_KD, torch.tensor([[2.0, 2.0], [-3.0, -3.0]])])
    monkeypatch.setitem(quantize.MEMORY, "cpu", 4 * 6 * 2)
    assert nearest(x_ND, e_KD).tolist() == [0, 0, 1, 0, 3, 4, 1, 0, 3]


def test_all_distances_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[1:] == (128,):
                largest = max(largest, out.numel() * out.element_size())
            return out

    monkeypatch.setitem(quantize.MEMORY, "cpu", 4096)
    with Spy():
        nearest(torch.randn(1000, 4), torch.randn(128, 4))
    assert 0 < largest <= 4096


def test_losses_move_the_right_side() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(5, 3)
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    out, codes, commitment, codebook = quantizer(z)
    assert torch.allclose(out, quantizer.embedding(codes).view(2, 4, 4, 3).permute(0, 3, 1, 2), atol=1e-6)
    assert commitment.item() == pytest.approx(codebook.item())
    weight = quantizer.embedding.weight
    assert torch.autograd.grad(commitment, weight, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(codebook, z, retain_graph=True, allow_unused=True)[0] is None
    (gradient,) = torch.autograd.grad(out.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


def test_kmeans_finds_separate_clusters_and_is_deterministic() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [50.0, 50.0]])
    sizes = (1000, 20, 10, 3)  # very unequal: most of a picture is background
    x = torch.cat([c + 0.1 * torch.randn(n, 2) for c, n in zip(centres, sizes, strict=True)])
    found = kmeans(x, 4, 10, torch.Generator().manual_seed(1))
    assert torch.cdist(centres, found).amin(1).max() < 0.2
    assert torch.equal(found, kmeans(x, 4, 10, torch.Generator().manual_seed(1)))


def test_kmeans_with_too_few_different_vectors() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(10, 1)
    found = kmeans(x, 6, 3, torch.Generator().manual_seed(0))
    assert found.shape == (6, 2)
    assert found.isfinite().all()
    assert torch.cdist(x, found).amin(1).max() < 0.05


def test_many_far_samples_are_drawn_a_few_at_once_and_all_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "DRAWS", 8)
    rounds: list[int] = []

    def multinomial(weight: torch.Tensor, count: int, real: Any = torch.multinomial, **more: Any) -> torch.Tensor:
        rounds.append(count)
        return real(weight, count, **more)  # type: ignore[no-any-return]

    monkeypatch.setattr(torch, "multinomial", multinomial)
    x_ND = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    drawn_KD = sample_far(x_ND, x_ND[:0], 60, torch.Generator().manual_seed(0))
    assert len(drawn_KD.unique(dim=0)) == len(drawn_KD) == 60
    assert max(rounds) == 8
    assert len(rounds) < 30
    assert len(sample_far(x_ND, x_ND[:0], 80, torch.Generator().manual_seed(0))) == 60  # no more are different


def test_far_samples_do_not_depend_on_how_many_vectors_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for memory in (4 << 20, 4 * 5 * 12):
        monkeypatch.setattr(quantize, "MEMORY", {"cpu": memory, "cuda": memory})
        found.append(sample_far(x_ND, x_ND[:3], 40, torch.Generator().manual_seed(1)))
    assert torch.equal(*found)
    assert len(found[0]) == 40


def test_far_samples_avoid_what_is_there() -> None:
    x = torch.cat([torch.zeros(1000, 2), torch.full((1, 2), 9.0), torch.full((1, 2), -9.0)])
    drawn = sample_far(x, torch.zeros(1, 2), 2, torch.Generator().manual_seed(0))
    assert sorted(drawn[:, 0].tolist()) == [-9.0, 9.0]
    assert len(sample_far(x, torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0]]), 2, torch.Generator())) == 0
