"""Small sources of files for the tests of scanning and selecting."""

from __future__ import annotations

from tests.tasks.file_sources import jsonl, make_context, pictures

__all__ = ["jsonl", "make_context", "pictures"]
