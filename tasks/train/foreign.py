"""The files of an image tokenizer or transformer that a recipe imports, found without torch, for a fingerprint."""

from __future__ import annotations

from pathlib import Path

from infra.errors import SourceError, StoreError
from model.image_tokenizer.foreign_files import ForeignFiles, find_files
from model.transformer.foreign_files import ModelFiles, find_model
from tasks.train.config import ImageTokenizerImport, ModelImport


def import_files(config: ImageTokenizerImport, folder: str | Path) -> ForeignFiles:
    """Where the recipe's weights lie; relative paths start at ``folder``.

    Raises:
        SourceError: They are not there.
    """
    assert config.file is not None
    try:
        described = None if config.config is None else _whole(config.config, folder)
        return find_files(_whole(config.file, folder), described)
    except StoreError as e:
        raise SourceError(f"{e} Correct image_tokenizer_import. Relative paths start at the recipe's folder.") from e


def import_model_files(config: ModelImport, folder: str | Path) -> ModelFiles:
    """Where the recipe's transformer lies; otherwise as :func:`import_files`."""
    assert config.path is not None
    try:
        return find_model(_whole(config.path, folder))
    except StoreError as e:
        raise SourceError(f"{e} Correct model_import. Relative paths start at the recipe's folder.") from e


def _whole(path: str, folder: str | Path) -> str:
    return path if "://" in path else str(Path(folder) / Path(path).expanduser())
