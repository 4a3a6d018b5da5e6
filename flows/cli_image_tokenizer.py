"""The commands that bring image tokenizers in from other projects, and out to them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from flows.cli_errors import plain_errors

image_tokenizer = typer.Typer(
    no_args_is_help=True, help="Image tokenizers of other projects: import, export (docs/image-tokenizer-weights.md)."
)


class Layout(StrEnum):
    """How others keep an image tokenizer."""

    vqgan = "vqgan"
    transformers = "transformers"


@image_tokenizer.command(name="import", epilog="Example: calumma image-tokenizer import vqgan.ckpt --to tokenizer")
def import_(
    path: Annotated[str, typer.Argument(help="A vqgan.ckpt, a safetensors file, or a folder of transformers.")],
    to: Annotated[str, typer.Option("--to", help="A new folder for the tokenizer.")],
    config: Annotated[
        str | None, typer.Option(help="taming's YAML or config.json; default: the one beside the weights.")
    ] = None,
    resolution: Annotated[int, typer.Option(help="Side of its pictures, where no configuration says it.")] = 512,
) -> None:
    """Reads somebody else's weights into a folder that recipes (image_tokenizer_import.file) and notebooks take."""
    with plain_errors():
        from infra.errors import StoreError
        from infra.storage import Storage
        from model.image_tokenizer.foreign_files import find_files
        from model.image_tokenizer.importing import import_weights
        from model.image_tokenizer.load import CONFIG, NO_DECODER, WEIGHTS, save_image_tokenizer

        store = Storage(to)
        for name in (CONFIG, WEIGHTS):
            if store.exists(name):
                raise StoreError(f"{store.url(name)}: exists already; remove it, or name another folder with --to")
        with find_files(path, config).on_disk() as files:
            found = import_weights(files, resolution)
        save_image_tokenizer(store, found.config, found.weights)
        c, count = found.config, sum(w.numel() for w in found.weights.values())
        typer.echo(
            f"{to}: {c.resolution}x{c.resolution} pictures to {c.grid}x{c.grid} codes of {c.codes:,}; {count:,} "
            f"parameters, read as {found.dtype}; {found.left_out} other tensors left out"
        )
        if not found.has_decoder:
            typer.secho(f"note: {NO_DECODER}", fg="yellow", err=True)


@image_tokenizer.command(
    name="export", epilog="Example: calumma image-tokenizer export tokenizer --as vqgan --to vqgan.ckpt"
)
def export_(
    folder: Annotated[str, typer.Argument(help="A tokenizer's folder: work/RUN/image-tokenizer/…, or one imported.")],
    layout: Annotated[Layout, typer.Option("--as", help="Whose layout.")],
    to: Annotated[
        str, typer.Option("--to", help="vqgan: a new .ckpt, its YAML beside it; transformers: a new folder.")
    ],
) -> None:
    """Writes an image tokenizer for taming-transformers (vqgan.ckpt and its YAML) or for transformers (the encoder)."""
    with plain_errors():
        from infra.storage import Storage
        from model.image_tokenizer.exporting import export_weights
        from model.image_tokenizer.load import read_image_tokenizer

        config, weights = read_image_tokenizer(Storage(folder))
        for address in export_weights(config, weights, layout.value, to):
            typer.echo(address)
