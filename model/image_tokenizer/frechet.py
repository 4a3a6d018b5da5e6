"""rFID: the Fréchet distance between Inception's features of pictures and of their reconstructions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infra.errors import RecipeError


def frechet_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """Fréchet distance of the two Gaussians with the features' means and covariances (Heusel et al., 2017), float64.

    |μa - μb|² + tr(A + B - 2·(A·B)^½), the root's trace by eigenvalues of symmetric matrices alone, so that covariances
    without full rank, of fewer pictures than features, do no harm. Figures of different numbers of pictures do not
    compare. ValueError with fewer than two rows on either side.
    """
    if min(len(a_ND), len(b_MD)) < 2:
        raise ValueError(f"{len(a_ND)} and {len(b_MD)} feature vectors; a covariance takes at least 2")
    mean_a, mean_b = a_ND.double().mean(0), b_MD.double().mean(0)
    cov_a, cov_b = (torch.cov(x.double().T).reshape(x.shape[1], x.shape[1]) for x in (a_ND, b_MD))
    values_D, vectors_DD = torch.linalg.eigh(cov_a)
    root_DD = vectors_DD * values_D.clamp(min=0).sqrt()  # A = root·rootᵀ; root and A^½ differ by a rotation
    shared_D = torch.linalg.eigvalsh(root_DD.T @ cov_b @ root_DD).clamp(min=0).sqrt()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared_D.sum()
    return float(distance.clamp(min=0))


def inception_features(program: Any, pictures_BCHW: Tensor, where: str) -> Tensor:
    """Features (B, d) float64 of uint8 pictures; RecipeError if ``program``, named by ``where``, gives nothing like it.

    A program whose ``forward`` takes ``return_features``, as the one that StyleGAN's metrics use, is asked for those.
    """
    names = {argument.name for argument in program.forward.schema.arguments}
    try:
        found = program(pictures_BCHW, **({"return_features": True} if "return_features" in names else {}))
    except Exception as e:  # a program of somebody else's: it may raise anything
        said = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise RecipeError(
            f"{where}: fails on uint8 pictures {tuple(pictures_BCHW.shape)} ({said}). "
            "Correct image_tokenizer_training.inception_weights."
        ) from e
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(pictures_BCHW):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise RecipeError(
            f"{where}: gives {shape} for {len(pictures_BCHW)} pictures, not a vector of features for each. "
            "Correct image_tokenizer_training.inception_weights."
        )
    return found.double()
