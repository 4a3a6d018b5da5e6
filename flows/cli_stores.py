"""The commands that look after the stores: their account, losses, bytes, what is in them and what may go."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli_errors import plain_errors

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

    from infra.store.manifest import Rows

stores = typer.Typer()
AnyWorkdir = Annotated[str, typer.Argument(help="The work folder of a run, or s3://BUCKET/PREFIX.")]
OtherRecipe = Annotated[str | None, typer.Option(help="Looks with this recipe; default: the last one run.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides one key, e.g. pretrain.batch=16.")
]


@stores.command(epilog="Example: calumma retry work/photos")
def retry(workdir: AnyWorkdir) -> None:
    """Reads quarantined samples again whose fault may have passed, and only them; then run the recipe once more."""
    with plain_errors(workdir):
        from flows.local import retry_locally

        retry_locally(workdir)


@stores.command(epilog="Example: calumma ledger work/photos --quarantine --source photos")
def ledger(
    workdir: AnyWorkdir,
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    step: Annotated[str | None, typer.Option(help="Only this step.")] = None,
    parts: Annotated[bool, typer.Option("--parts", help="Also a line for every part.")] = False,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Also the rows in quarantine, by class.")] = False,
    limit: Annotated[int, typer.Option(help="Rows of each class shown.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON instead.")] = False,
    recipe: OtherRecipe = None,
    settings: Settings = None,
) -> None:
    """Sums and checks what became of every row, part by part and from step to step; exit code 1 where it is open."""
    with plain_errors(workdir):
        from tasks import ledger_view as view
        from tasks import quarantine as lost
        from tasks.addresses import addresses_of
        from tasks.ledger import check_ledger

        addresses = addresses_of(workdir, recipe, settings or [])

        def on_part(part: str, rows: Mapping[str, Rows | None]) -> None:
            typer.echo(view.part_line(part, rows))

        found = check_ledger(addresses, step=step, source=source, on_part=on_part if parts and not as_json else None)
        rows = lost.quarantined(addresses, step, source) if quarantine else None
        if as_json:
            data = view.as_json(found) | ({"quarantine": lost.as_json(rows, limit)} if rows is not None else {})
            typer.echo(json.dumps(data, indent=1, ensure_ascii=False))
        else:
            _print(view.render(found, addresses.guessed))
            _print(lost.render_quarantine(rows, limit) if rows is not None else ())
        if found.fault_count:
            raise typer.Exit(1)


@stores.command(epilog="Example: calumma verify work/photos --step encode --repair")
def verify(
    workdir: AnyWorkdir,
    step: Annotated[str | None, typer.Option(help="Only this step.")] = None,
    source: Annotated[str | None, typer.Option(help="Only this source's parts.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Has the next run make damaged parts again.")] = False,
    recipe: OtherRecipe = None,
    settings: Settings = None,
) -> None:
    """Reads every stored file again and compares it with its manifest; exit code 1 where something is damaged."""
    with plain_errors(workdir):
        from tasks import repair as mending
        from tasks.addresses import addresses_of
        from tasks.verify import verify as check

        addresses = addresses_of(workdir, recipe, settings or [])
        with _progress() as progress:
            verdict = check(addresses, step=step, source=source, progress=progress)
        _print(mending.render(addresses, verdict))
        if repair and verdict.damage:
            _print(mending.render_repair(mending.repair(addresses, verdict.damage)))
        if verdict.damage and (not repair or mending.by_hand(addresses, verdict.damage)):
            raise typer.Exit(1)


@stores.command(epilog="Example: calumma trace work/photos 1234 --out originals   (a position of pre-training)")
def trace(
    workdir: AnyWorkdir,
    what: Annotated[
        str, typer.Argument(help="A sample id, SOURCE:KEY, PART#ROW, a position of pre-training, or STAGE:SEQUENCE.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the original pictures.")] = None,
    recipe: OtherRecipe = None,
    settings: Settings = None,
) -> None:
    """Leads from anything that a run made back to file, row and licence."""
    with plain_errors(workdir):
        from tasks.addresses import addresses_of
        from tasks.trace import trace as find
        from tasks.trace_view import render

        addresses = addresses_of(workdir, recipe, settings or [])
        with _progress() as progress:
            found = find(addresses, what, progress)
        _print(render(addresses, found, out))


@stores.command(epilog="Example: calumma clean work/photos --keep photos --yes")
def clean(
    workdir: AnyWorkdir,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="RECIPE", help="A recipe whose steps stay, besides the last one run.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Removes; without it, only says what would go.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --yes: also where it may be the last results.")] = False,
) -> None:
    """Removes what no recipe addresses: step folders, files of killed writers, job records."""
    with plain_errors(workdir):
        from tasks.clean import clean as tidy
        from tasks.clean import render

        _print(render(tidy(workdir, keep or [], delete=yes, force=force), yes))


@stores.command(epilog="Example: calumma browse work/photos --part photos-000003 --out browse.html")
def browse(
    workdir: AnyWorkdir,
    step: Annotated[str, typer.Option(help="encode, or scan as long as that is all there is.")] = "encode",
    part: Annotated[str | None, typer.Option(help="Default: of every source one that left much out.")] = None,
    limit: Annotated[int, typer.Option(help="Samples shown.")] = 200,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("browse.html"),
    recipe: OtherRecipe = None,
    settings: Settings = None,
) -> None:
    """Writes an HTML page of samples: pictures, their codes decoded, texts, and what was left out and why."""
    with plain_errors(workdir):
        from infra.storage import Storage
        from infra.words import size_in_words
        from tasks.addresses import addresses_of
        from tasks.browse.page import browse as show

        addresses = addresses_of(workdir, recipe, settings or [])
        with _progress() as progress:
            page = show(addresses, step, part, limit, progress)
        target = out.resolve()
        Storage(target.parent).put(target.name, page.encode())  # whole, or an earlier page stays
        typer.echo(f"{out}: {size_in_words(out.stat().st_size)}, open it in a browser")


class TokenFormat(StrEnum):
    """What ``tokens`` writes."""

    mds = "mds"
    megatron = "megatron"


class TokenUnit(StrEnum):
    """What ``tokens`` makes a record of."""

    sequences = "sequences"
    documents = "documents"


class TokenType(StrEnum):
    """Type of the ids in Megatron's files."""

    uint16 = "uint16"
    int32 = "int32"


@stores.command(epilog="Example: calumma tokens work/photos --format mds --out tokens   (then a source of type mds)")
def tokens(
    workdir: AnyWorkdir,
    out: Annotated[str, typer.Option(help="Where to: a folder or s3://BUCKET/PREFIX; one data set in a folder each.")],
    form: Annotated[TokenFormat, typer.Option("--format", help="MosaicML Streaming's MDS, or Megatron's .bin/.idx.")],
    unit: Annotated[TokenUnit, typer.Option(help="Packed sequences, or their documents.")] = TokenUnit.sequences,
    only: Annotated[str | None, typer.Option(help="One stage, epoch or held-out-SOURCE; default: all.")] = None,
    dtype: Annotated[TokenType, typer.Option(help="Of the ids in Megatron's files.")] = TokenType.uint16,
    recipe: OtherRecipe = None,
    settings: Settings = None,
) -> None:
    """Writes a mixture's tokens for other trainers, in the order of training; says what their format cannot hold."""
    with plain_errors(workdir):
        from infra.errors import StoreError
        from infra.home import whole_name
        from infra.storage import Storage
        from tasks.addresses import addresses_of
        from tasks.exchange.export import LOST, export_tokens

        addresses = addresses_of(workdir, recipe, settings or [])
        if addresses.manifest("mix") is None:
            raise StoreError(f"{addresses.root}: step mix is not finished. Run the recipe up to it: --to mix.")
        target = Storage(whole_name(out))
        with _progress() as progress:
            found = export_tokens(
                addresses.store("mix"),
                target,
                form.value,
                unit.value,
                only=only,
                dtype=dtype.value,
                progress=progress,
            )
        for made in found:
            typer.echo(f"{made.url}: {made.records:,} {unit.value}, {made.tokens:,} tokens")
        typer.echo("Lost on the way: " + "; ".join(LOST[form.value, unit.value]) + ".")


def _print(pieces: Iterable[RenderableType]) -> None:
    """Prints pieces as they come, on one console; lines that are not to be broken go past its edge.

    What stdout's encoding cannot hold (half a surrogate pair, or any letter where it is ASCII) comes as an escape.
    """
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console()
    for piece in pieces:
        console.print(piece, crop=False)


@contextmanager
def _progress() -> Iterator[Progress]:
    """Progress bars on stderr that leave nothing behind."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        yield progress
