"""Weights to shares to whole numbers of tokens; and shares that hold the image share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from infra.errors import RecipeError
from tasks.mix.config import MixConfig, StageConfig

Shares = dict[str, Fraction]
"""By source; they sum to 1."""

_TOLERANCE = 1e-9
_BISECTIONS = 200


def largest_remainder(total: int, shares: Mapping[str, Fraction | float | int]) -> dict[str, int]:
    """Whole numbers that sum to ``total`` in these proportions: each rounded down, the rest to the largest fractions.

    Exact: weights are taken as the rationals they are. Of equal fractions the first named is served first.
    """
    exact = normalised(shares)
    wished = {name: total * share for name, share in exact.items()}
    quotas = {name: math.floor(wish) for name, wish in wished.items()}
    left = total - sum(quotas.values())
    for name in sorted(wished, key=lambda n: quotas[n] - wished[n])[:left]:
        quotas[name] += 1
    return quotas


def normalised(weights: Mapping[str, Fraction | float | int]) -> Shares:
    """Weights as shares that sum to exactly 1, without those that are 0."""
    exact = {name: Fraction(weight) for name, weight in weights.items() if weight}
    total = sum(exact.values())
    return {name: weight / total for name, weight in exact.items()}


def stage_shares(mix: MixConfig, image_shares: Mapping[str, float]) -> list[Shares]:
    """Each stage's shares by source; ``image_shares``: image tokens over all tokens of one pass of each source."""
    first = normalised(mix.stages[0].weights)
    found = [first]
    for stage in mix.stages[1:]:
        new = normalised(stage.weights)
        if stage.hold_image_share and stage.earlier < 1:  # else the first stage's proportions hold it themselves
            target = sum(float(share) * image_shares[name] for name, share in first.items())
            new = hold_image_share(stage, new, image_shares, target)
        earlier = Fraction(stage.earlier)
        shares = {name: share * earlier for name, share in first.items()}
        for name, share in new.items():
            shares[name] = shares.get(name, Fraction(0)) + share * (1 - earlier)
        found.append(normalised(shares))
    return found


def hold_image_share(stage: StageConfig, weights: Shares, image_shares: Mapping[str, float], target: float) -> Shares:
    """The shares nearest to ``weights`` (least relative entropy) whose image share is ``target``.

    They are ``weight·exp(λ·image share)``, normalised; λ by bisection, as their image share rises with it. No source
    changes sides: one that was wished for is never driven to 0. RecipeError if no shares reach the target.
    """
    by_image = sorted(weights, key=lambda name: image_shares[name])
    low, high = image_shares[by_image[0]], image_shares[by_image[-1]]

    def tilted(slope: float) -> dict[str, float]:
        exponents = {name: slope * image_shares[name] for name in weights}
        largest = max(exponents.values())
        powers = {name: float(weight) * math.exp(exponents[name] - largest) for name, weight in weights.items()}
        total = sum(powers.values())
        return {name: power / total for name, power in powers.items()}

    def image_share(shares: Mapping[str, float]) -> float:
        return sum(share * image_shares[name] for name, share in shares.items())

    if abs(image_share(tilted(0)) - target) < _TOLERANCE:
        return weights
    if not low < target < high:
        raise _out_of_reach(stage, weights, image_shares, target, image_share(tilted(0)))
    below, above = -1.0, 1.0
    while image_share(tilted(below)) > target and below > -1e6:
        below *= 2
    while image_share(tilted(above)) < target and above < 1e6:
        above *= 2
    for _ in range(_BISECTIONS):
        middle = (below + above) / 2
        if image_share(tilted(middle)) < target:
            below = middle
        else:
            above = middle
    # Twelve decimals: the last bits of exp differ between machines, and quotas must not.
    return normalised({name: Fraction(round(share * 10**12), 10**12) for name, share in tilted(above).items()})


def _out_of_reach(
    stage: StageConfig, weights: Shares, image_shares: Mapping[str, float], target: float, given: float
) -> RecipeError:
    """No weights of these sources reach the target; ``given``: the image share of the weights as they are."""
    by_image = sorted(weights, key=lambda name: image_shares[name])
    ranges = ", ".join(f"{name} {image_shares[name]:.1%}" for name in by_image)
    nearest = by_image[0] if target <= image_shares[by_image[0]] else by_image[-1]
    # A source beyond the target, as much of it as draws the weights there: (given + x·its share) / (1 + x) = target.
    amounts = {name: (given - target) / (target - share) for name, share in image_shares.items() if share != target}
    beyond = [name for name, amount in amounts.items() if amount > 0]
    if abs(image_shares[nearest] - target) < _TOLERANCE:
        plan = f"with weights {{{nearest}: 1}}, which give {image_shares[nearest]:.2%}"
    elif beyond:
        best = min(beyond, key=lambda name: amounts[name])
        amount = amounts[best] * sum(stage.weights.values())
        plan = f"with {best}: {amount:.4g} more in weights, of which {image_shares[best]:.1%} are image tokens"
    else:
        wished = ", ".join(f"{name}: {weight:g}" for name, weight in stage.weights.items())
        plan = f"with hold_image_share: false and weights {{{wished}}}, which give {given:.2%}: no source of this"
        plan += " mixture is on the other side"
    return RecipeError(
        f"mix.stages.{stage.name}.hold_image_share: the first stage is {target:.2%} image tokens, and no weights of "
        f"this stage's new sources reach that; they hold: {ranges}. The nearest feasible plan is this mixture {plan}."
    )
