"""The plan: token quotas by stage and source, whether there is enough for them, and intervals of documents."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from infra.errors import RecipeError
from infra.store.plan import Interval
from tasks.mix.config import FinetuneMixConfig, MixConfig
from tasks.mix.shares import largest_remainder, stage_shares
from tasks.mix.streams import Measure, Stream


@dataclass(frozen=True, slots=True)
class Supply:
    """What a source has for pre-training: its documents, each once."""

    documents: int
    tokens: int
    image_tokens: int
    of: int = 0
    """Documents of the source altogether, with those that are held out or left out."""

    @property
    def image_share(self) -> float:
        return self.image_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class Quota:
    """What a stage takes of a source."""

    stage: str
    source: str
    tokens: int
    share: float
    """Of the stage's tokens."""
    image_tokens: int
    """As many as the source's image share makes of it."""
    passes: float
    """How often the source has been gone through when the stage ends."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A mixture in numbers, before any document is chosen."""

    quotas: tuple[Quota, ...]
    first_stage_tokens: int
    """What the first stage's sources hold together, each document once."""

    @property
    def tokens(self) -> int:
        return sum(q.tokens for q in self.quotas)

    @property
    def passes(self) -> float:
        """Tokens seen in all over those that the first stage's sources hold, as the paper counts its epochs."""
        return self.tokens / self.first_stage_tokens

    def stages(self) -> dict[str, tuple[Quota, ...]]:
        names = dict.fromkeys(q.stage for q in self.quotas)
        return {name: tuple(q for q in self.quotas if q.stage == name) for name in names}


def outline(mix: MixConfig, supplies: Mapping[str, Supply]) -> Outline:
    """The quotas of all stages, if ``supplies`` can bear them.

    Raises:
        RecipeError: a source has no documents, a quota is less than a document, ``max_passes`` or ``hold_image_share``
            cannot be kept. It names the constraint and the nearest plan that is feasible.
    """
    for stage in mix.stages:
        for name in (n for n, weight in stage.weights.items() if weight and not supplies[n].tokens):
            raise _nothing(mix, stage.name, name, supplies)
    shares = stage_shares(mix, {name: supply.image_share for name, supply in supplies.items()})
    tokens = largest_remainder(mix.tokens, {stage.name: stage.share for stage in mix.stages})
    used = dict.fromkeys(supplies, 0)
    quotas = []
    for stage, own in zip(mix.stages, shares, strict=True):
        for name, quota in largest_remainder(tokens[stage.name], own).items():
            supply = supplies[name]
            if quota * supply.documents < supply.tokens:
                raise _too_little(mix, stage.name, name, quota, own[name] * Fraction(stage.share), supply)
            used[name] += quota
            image = round(quota * supply.image_share)
            passes = used[name] / supply.tokens
            quotas.append(Quota(stage.name, name, quota, float(own[name]), image, passes))
    if mix.max_passes is not None:
        worst = max(used, key=lambda n: used[n] / max(1, supplies[n].tokens))
        if used[worst] > mix.max_passes * supplies[worst].tokens:
            raise _too_often(mix, mix.max_passes, used, supplies, worst)
    first = sum(supplies[name].tokens for name in shares[0])
    return Outline(tuple(quotas), first)


def pretrain_intervals(mix: MixConfig, streams: Mapping[str, Stream], found: Outline) -> list[list[Interval]]:
    """Each stage's intervals by source. A later stage goes on where the earlier ones stopped."""
    cursors = dict.fromkeys(streams, 0)
    stages = []
    for quotas in found.stages().values():
        intervals = []
        for quota in quotas:
            name = quota.source
            intervals.append(_interval(streams[name], cursors[name], quota.tokens, "tokens"))
            cursors[name] = intervals[-1].stop
        stages.append(intervals)
    return stages


def finetune_intervals(config: FinetuneMixConfig, streams: Mapping[str, Stream]) -> list[list[Interval]]:
    """Each epoch's intervals by category, counted in answer tokens; the next epoch goes on where the last stopped."""
    natural = {name: stream.supply.answer_tokens for name, stream in streams.items()}
    for name in config.weights:
        if name not in natural:
            near = difflib.get_close_matches(name, natural, 1)
            raise RecipeError(
                f"finetune_mix.weights: no conversation has category {name!r}; "
                + (f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(natural)}")
            )
        if config.weights[name] and not natural[name]:
            raise _unanswered(f"finetune_mix.weights.{name}", f"category {name!r} has", natural)
    total = sum(natural.values())
    if not total:
        raise _unanswered("finetune_mix.sources", f"{', '.join(config.sources)} have", natural)
    quotas = natural
    if config.weights:
        if not any(config.weights.get(name, count) for name, count in natural.items()):
            raise RecipeError(
                "finetune_mix.weights: every category weighs 0, so that there is nothing to train on. Give one a "
                f"weight above 0, or leave it out, and it weighs its natural share; there are: {', '.join(natural)}"
            )
        quotas = largest_remainder(
            total, {name: config.weights.get(name, Fraction(count, total)) for name, count in natural.items()}
        )
    cursors = dict.fromkeys(quotas, 0)
    epochs = []
    for _ in range(config.epochs):
        intervals = []
        for name, quota in quotas.items():
            intervals.append(_interval(streams[name], cursors[name], quota, "answer_tokens"))
            cursors[name] = intervals[-1].stop
        epochs.append(intervals)
    return epochs


def _unanswered(key: str, what: str, natural: Mapping[str, int]) -> RecipeError:
    others = ", ".join(f"{name} {count:,}" for name, count in natural.items() if count)
    return RecipeError(
        f"{key}: {what} no answer tokens, which fine-tuning counts. "
        + (f"Give it no weight; there are answer tokens of: {others}" if others else "Look into tokenize's ledger.")
    )


def _interval(stream: Stream, start: int, quota: int, measure: Measure) -> Interval:
    stop = stream.take(start, quota, measure)
    held = stream.prefix(stop) - stream.prefix(start)
    return Interval(
        stream=stream.name,
        start=start,
        stop=stop,
        per_pass=stream.per_pass,
        quota=quota,
        counted=held.tokens if measure == "tokens" else held.answer_tokens,
        tokens=held.tokens,
        image_tokens=held.image_tokens,
    )


def _nothing(mix: MixConfig, stage: str, name: str, supplies: Mapping[str, Supply]) -> RecipeError:
    weights = next(s.weights for s in mix.stages if s.name == stage)
    rest = ", ".join(f"{n}: {w:g}" for n, w in weights.items() if w and supplies[n].tokens)
    why = (
        f"none of its {supplies[name].of:,} documents may be used: all are held out, or left out by mix.where"
        if supplies[name].of
        else "it has no documents"
    )
    return RecipeError(
        f"mix.stages.{stage}.weights.{name}: tokens are wanted of {name}, and {why}. "
        + (f"The nearest feasible weights are {{{rest}}}. " if rest else "No other source has a weight there. ")
        + "Look into the ledger of scan and tokenize for where its samples went."
    )


def _too_little(mix: MixConfig, stage: str, name: str, quota: int, share: Fraction, supply: Supply) -> RecipeError:
    average = Fraction(supply.tokens, supply.documents)
    # A little more than the bound: rounding to whole tokens may take one away.
    enough = math.ceil((average + 1) / share)
    return RecipeError(
        f"mix.stages.{stage}: {quota:,} tokens are wanted of {name}, less than one of its documents, which have "
        f"{float(average):,.0f} on average. The nearest feasible plan is this mixture with mix.tokens: {enough:,} "
        f"(it is {mix.tokens:,}), {float(average / max(1, quota)):,.1f} times the weight for {name}, or none."
    )


def _too_often(
    mix: MixConfig, limit: float, used: Mapping[str, int], supplies: Mapping[str, Supply], worst: str
) -> RecipeError:
    over = [n for n in used if used[n] > limit * supplies[n].tokens]
    passes = ", ".join(f"{n} {used[n] / supplies[n].tokens:,.2f}" for n in over)
    most = math.floor(mix.tokens * limit * supplies[worst].tokens / used[worst] * (1 - 1e-9))
    return RecipeError(
        f"mix.max_passes is {limit:g}, and this mixture of {mix.tokens:,} tokens goes more often through: {passes} "
        f"times. {worst} has {supplies[worst].tokens:,} tokens and {used[worst]:,} are wanted. The nearest feasible "
        f"plan is this mixture with mix.tokens: {most:,}; or give these sources less weight, or raise mix.max_passes."
    )


def supply_of(stream: Stream, documents: int) -> Supply:
    """A stream's supply; ``documents``: of its source altogether."""
    found = stream.supply
    return Supply(stream.per_pass, found.tokens, found.image_tokens, documents)


def named(mix: MixConfig) -> list[str]:
    """The sources that have a weight in any stage, in the order in which they are named."""
    weights: Sequence[Mapping[str, float]] = [stage.weights for stage in mix.stages]
    return list(dict.fromkeys(n for by_source in weights for n, weight in by_source.items() if weight))
