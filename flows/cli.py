"""The command line. Commands import what they need when they run, so that ``calumma --help`` answers at once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli_errors import plain_errors
from flows.cli_image_tokenizer import image_tokenizer
from flows.cli_stores import AnyWorkdir, stores

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Calumma: from raw text and pictures to a mixed-modal early-fusion model.",
    epilog="Start with: calumma run emoji",
)


class Modality(StrEnum):
    """What ``generate`` may write."""

    text = "text"
    image = "image"
    any = "any"


RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in one (emoji, photos).")]


Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides one key, e.g. pretrain.batch=16.")
]


@app.command(epilog="Example: calumma run emoji --set seed=1 --workdir work/emoji-1")
def run(
    recipe: RecipeName,
    settings: Settings = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STEP", help="Starts at this step.")] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STEP", help="Runs just this step.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STEP", help="Ends with this step.")] = None,
    workdir: Annotated[
        str | None, typer.Option(help="Where everything is kept: a folder or s3://BUCKET/PREFIX; default: work/RECIPE.")
    ] = None,
) -> None:
    """Runs a recipe: every step that is not done yet, from raw files to the report."""
    with plain_errors(workdir):
        from flows.local import run_locally

        run_locally(recipe, settings or [], workdir, first, only, last)


@app.command(epilog="Example: calumma plan chameleon-7b")
def plan(
    recipe: RecipeName,
    settings: Settings = None,
    source: Annotated[str | None, typer.Option(help="Just this source, up to its documents.")] = None,
    rates: Annotated[
        Path | None,
        typer.Option(help="Rates and prices, made by python -m benchmarks.rates; default: those delivered."),
    ] = None,
) -> None:
    """Says what would run: parts, tokens, bytes, requests, hours, cost, with the arithmetic. Touches nothing."""
    with plain_errors():
        from rich.console import Console

        from tasks.plan.cost import plan_cost
        from tasks.plan.rates import load_rates
        from tasks.plan.render import render
        from tasks.recipe import load_recipe

        Console().print(render(plan_cost(load_recipe(recipe, settings or []), load_rates(rates), source)))


@app.command(epilog="Example: calumma status work/emoji --recipe emoji --set mix.tokens=5000000")
def status(
    workdir: AnyWorkdir,
    recipe: Annotated[str | None, typer.Option(help="Compares with this recipe; default: the last one run.")] = None,
    settings: Settings = None,
) -> None:
    """Shows steps, ledger, checkpoints, where things are, and what a changed recipe would do again."""
    with plain_errors(workdir):
        from rich.console import Console

        from tasks.status import render, status_of

        Console().print(render(status_of(workdir, recipe, settings or [])))


@app.command(epilog="Example: calumma inspect work/emoji/encode/*/parts/emoji-000000.parquet --out sheet.png")
def inspect(
    path: Annotated[str, typer.Argument(help="A part, sequence file, manifest, checkpoint or weights; also on s3://.")],
    out: Annotated[Path | None, typer.Option(help="Also writes the pictures found to this PNG.")] = None,
    limit: Annotated[int, typer.Option(help="Rows or sequences shown.")] = 5,
    sequence: Annotated[int | None, typer.Option(help="Only this sequence of a mixture's stage, by number.")] = None,
) -> None:
    """Looks inside any stored file: pictures, text, token spans."""
    with plain_errors():
        from rich.console import Console

        from tasks.inspect import inspect as look

        console = Console()
        for found in look(path, out=out, limit=limit, sequence=sequence):
            console.print(found)


@app.command(epilog='Example: calumma generate work/emoji "Draw: red apple" --modality image --out drawings')
def generate(
    workdir: AnyWorkdir,
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    image: Annotated[list[Path] | None, typer.Option(help="A picture that comes before the prompt.")] = None,
    modality: Annotated[Modality, typer.Option(help="What the answer may hold.")] = Modality.any,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("generated"),
    seed: Annotated[int, typer.Option(help="Equal seeds give equal answers.")] = 0,
) -> None:
    """Asks a trained model; prints its text and says where its pictures are."""
    with plain_errors(workdir):
        from tasks.generate import generate_in

        for piece in generate_in(workdir, prompt, images=image or [], modality=modality.value, out=out, seed=seed):
            typer.echo(piece)


@app.command(epilog="Example: calumma export work/emoji --out emoji-model")
def export(
    workdir: AnyWorkdir, out: Annotated[Path, typer.Option(help="A new folder, for transformers to load.")]
) -> None:
    """Copies the exported model: a folder that transformers loads."""
    with plain_errors(workdir):
        from tasks.status import copy_export

        typer.echo(copy_export(workdir, out))


@app.command(epilog="Example: calumma ui work/emoji --port 4300")
def ui(workdir: AnyWorkdir, port: Annotated[int, typer.Option(help="Port of the Prefect UI.")] = 4200) -> None:
    """Serves the Prefect UI over a work folder's runs; says where Ray's dashboard is while a run is on."""
    with plain_errors(workdir):
        from flows.local import serve_ui

        serve_ui(workdir, port)


# Listed between looking and using, as the README has them.
app.registered_commands[4:4] = stores.registered_commands
app.add_typer(image_tokenizer, name="image-tokenizer")


if __name__ == "__main__":
    app()
