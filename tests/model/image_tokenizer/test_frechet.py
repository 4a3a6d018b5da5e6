"""The Fréchet distance: closed forms, and programs that give features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import RecipeError
from model.image_tokenizer.frechet import frechet_distance, inception_features


def gaussian(mean: list[float], deviations: list[float]) -> torch.Tensor:
    """Rows with exactly this mean and a diagonal covariance of these squared deviations."""
    size = len(mean)
    corners_ND = torch.tensor([[1.0 if row >> d & 1 else -1.0 for d in range(size)] for row in range(2**size)])
    unbiased = (2**size / (2**size - 1)) ** 0.5
    return torch.tensor(mean) + corners_ND * torch.tensor(deviations) / unbiased


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_diagonal_gaussians_have_a_closed_form(data: st.DataObject) -> None:
    numbers = st.lists(st.floats(0, 5, width=32), min_size=3, max_size=3)
    mean_a, mean_b, dev_a, dev_b = (data.draw(numbers) for _ in range(4))
    expected = sum((a - b) ** 2 for a, b in zip(mean_a + dev_a, mean_b + dev_b, strict=True))
    found = frechet_distance(gaussian(mean_a, dev_a), gaussian(mean_b, dev_b))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_it_is_scipys_for_full_covariances() -> None:
    import scipy.linalg

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6) for _ in range(2))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-9)


def test_fewer_pictures_than_features_do_no_harm() -> None:
    a = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a + 0.5) == pytest.approx(64 * 0.25, rel=1e-6)
    with pytest.raises(ValueError, match="1 and 5 feature vectors"):
        frechet_distance(a[:1], a)


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean((2, 3))


class Optional(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return x.float().amax((2, 3)) if return_features else x.float().flatten(1)


class Wrong(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


class Fails(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x


def test_programs_are_asked_as_they_want() -> None:
    pictures = torch.randint(0, 256, (3, 3, 8, 4), dtype=torch.uint8)
    plain, optional = (torch.jit.script(m) for m in (Plain(), Optional()))
    assert torch.equal(inception_features(plain, pictures, "here"), pictures.double().mean((2, 3)).float().double())
    assert torch.equal(inception_features(optional, pictures, "here"), pictures.double().amax((2, 3)))
    with pytest.raises(RecipeError, match=r"here: gives \(3, 3, 8, 4\) for 3 pictures"):
        inception_features(torch.jit.script(Wrong()), pictures, "here")
    with pytest.raises(RecipeError, match="here: fails on uint8 pictures"):
        inception_features(torch.jit.script(Fails()), pictures, "here")
