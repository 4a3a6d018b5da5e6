"""Sources: readers of raw samples, by short name or import path."""

from __future__ import annotations

import importlib
from pathlib import Path

from infra.errors import SourceError
from tasks.sources.base import Source
from tasks.sources.config import SourceConfig

READERS: dict[str, str] = {
    "emoji-pairs": "tasks.sources.emoji:EmojiPairs",
    "emoji-documents": "tasks.sources.emoji_documents:EmojiDocuments",
    "emoji-instructions": "tasks.sources.emoji_instructions:EmojiInstructions",
    "emoji-quality": "tasks.sources.emoji:EmojiQuality",
    "python-library": "tasks.sources.python_library:PythonLibrary",
    "python-topics": "tasks.sources.python_library:PythonTopics",
    "pairs": "tasks.sources.pairs:PairFiles",
    "text": "tasks.sources.text:TextFiles",
    "interleaved": "tasks.sources.interleaved:InterleavedFiles",
    "messages": "tasks.sources.messages:MessageFiles",
    "webdataset": "tasks.sources.webdataset:WebdatasetFiles",
    "img2dataset": "tasks.sources.img2dataset:Img2dataset",
    "pairs-parquet": "tasks.sources.pairs_parquet:PairsParquet",
    "obelics": "tasks.sources.obelics:Obelics",
    "html": "tasks.sources.html:HtmlFiles",
    "markdown": "tasks.sources.markdown:MarkdownFiles",
    "tokens": "tasks.sources.tokens:TokenFiles",
    "mds": "tasks.sources.mds:MdsTokens",
    "megatron": "tasks.sources.megatron:MegatronTokens",
}
"""Short names of the readers that come with Calumma."""


def open_source(config: SourceConfig, folder: str | Path = ".") -> Source:
    """The reader of a source; relative paths start at ``folder``."""
    target = READERS.get(config.type, config.type)
    module, sign, name = target.partition(":")
    if not sign:
        raise SourceError(
            f"source {config.name}: type {config.type!r} is neither one of {', '.join(READERS)} "
            "nor an import path package.module:Class"
        )
    try:
        reader = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise SourceError(f"source {config.name}: type {config.type!r} cannot be imported ({e})") from e
    try:
        source = reader(config, Path(folder))
    except TypeError as e:
        raise SourceError(f"source {config.name}: {target} cannot be called as Reader(config, folder) ({e})") from e
    if not isinstance(source, Source):
        raise SourceError(
            f"source {config.name}: {target} lacks digest, work_items or read (see tasks/sources/base.py)"
        )
    return source
