"""The files of an image tokenizer that a recipe imports, found without torch: a fingerprint is made of them."""

from __future__ import annotations

from pathlib import Path

from infra.errors import SourceError, StoreError
from model.image_tokenizer.foreign_files import ForeignFiles, find_files
from tasks.train.config import ImageTokenizerImport


def import_files(config: ImageTokenizerImport, folder: str | Path) -> ForeignFiles:
    """Where the recipe's weights lie; relative paths start at ``folder``.

    Raises:
        SourceError: They are not there.
    """
    assert config.file is not None

    def whole(path: str) -> str:
        return path if "://" in path else str(Path(folder) / Path(path).expanduser())

    try:
        return find_files(whole(config.file), None if config.config is None else whole(config.config))
    except StoreError as e:
        raise SourceError(f"{e} Correct image_tokenizer_import. Relative paths start at the recipe's folder.") from e
