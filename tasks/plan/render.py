"""A plan as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tasks.mix.show import lines_of_outline, mixture_table
from tasks.plan.cost import CostPlan
from tasks.plan.data import SourceSize
from tasks.plan.lines import Line
from tasks.plan.rates import Rate, Rates


def render(plan: CostPlan) -> RenderableType:
    """Sources, mixture, the data plane and training line by line, and the rates they rest on."""
    total = (
        f"All together [bold]${plan.cost:,.2f}[/], at the prices below: the data plane, the image tokenizer and "
        "pre-training once. Fine-tuning and evaluation are not reckoned."
    )
    return Group(
        _sources(plan.recipe, plan.sources),
        *_mixture(plan),
        _lines("Data plane", plan.data),
        *([_lines("Training", plan.training)] if plan.training else []),
        total,
        _rates(plan.rates),
    )


def _sources(recipe: str, sources: tuple[SourceSize, ...]) -> Table:
    table = Table(title=f"{recipe}: sources", title_justify="left")
    for column in ("source", "kind", "parts", "samples", "pictures", "text tokens", "read", "basis"):
        table.add_column(column, justify="left" if column in ("source", "kind", "basis") else "right", overflow="fold")
    for s in sources:
        counts = (f"{n:,}" for n in (s.items, s.samples, s.pictures, s.text_tokens))
        table.add_row(s.name, s.kind, *counts, f"{s.bytes / 1e9:,.2f} GB", s.basis)
    return table


def _mixture(plan: CostPlan) -> list[RenderableType]:
    if plan.infeasible:
        return [Text("Mixture", style="italic"), Text(f"By these sizes it cannot be made: {plan.infeasible}", "yellow")]
    if plan.mixture is None:
        return []
    found = plan.mixture
    seen = (
        f"{found.tokens:,} tokens are {found.passes:.2f} times the {found.first_stage_tokens:,} that the first stage's "
        "sources hold, if all their samples become documents."
    )
    return [mixture_table(lines_of_outline(found), "Mixture"), seen]


def _lines(title: str, lines: Iterable[Line]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("step", "what", "arithmetic", "comes to", "costs"):
        table.add_column(column, justify="right" if column in ("comes to", "costs") else "left", overflow="fold")
    for line in lines:
        cost = f"${line.cost:,.2f}" if line.cost else ""
        table.add_row(line.step, line.what, line.arithmetic, line.value, cost)
    return table


def _rates(rates: Rates) -> Table:
    table = Table(title="Rates", title_justify="left")
    for column in ("rate", "value", "unit", "basis"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for name in type(rates).model_fields:
        found = getattr(rates, name)
        named = {f"{name}.{key}": rate for key, rate in found.items()} if isinstance(found, dict) else {name: found}
        for label, rate in named.items():
            if isinstance(rate, Rate):
                how = "measured" if rate.measured else "[yellow]not measured[/]"
                table.add_row(label, f"{rate.value:,.6g}", rate.unit, f"{how}: {rate.basis}")
    return table
