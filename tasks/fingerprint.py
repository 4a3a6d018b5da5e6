"""Fingerprints: a step's output is addressed by what it was made from, so that equal work is never done twice.

A fingerprint hashes the step's version, its sections of the recipe, its inputs' fingerprints and, for ``scan``, the
identity of the sources' content. Paths, world size, precision and library versions are recorded elsewhere, not hashed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from infra.errors import SourceError
from tasks.recipe import Recipe
from tasks.sources import open_source
from tasks.steps import BY_NAME, STEPS


def fingerprint_of(content: Any) -> str:
    """blake2b-128 of canonical JSON, as 32 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def ingredients(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What each step's fingerprint hashes, in step order; every value is plain JSON."""
    found: dict[str, dict[str, Any]] = {}
    for step in STEPS:
        content: dict[str, Any] = {"step": step.name, "version": step.version}
        for section in step.sections:
            value = getattr(recipe, section)
            content[section] = _plain(value)
        if step.name == "scan":
            content["sources"] = [s.model_dump(mode="json", exclude={"path"}) for s in recipe.sources]
            content["content"] = {s.name: open_source(s, recipe.folder).digest() for s in recipe.sources}
        if step.name == "select" and recipe.select.removal_list is not None:
            content["removal"] = _file_digest(Path(recipe.folder) / recipe.select.removal_list)
        content["inputs"] = {name: fingerprint_of(found[name]) for name in step.inputs}
        found[step.name] = content
    return found


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """The fingerprint of every step's output under this recipe."""
    return {name: fingerprint_of(content) for name, content in ingredients(recipe).items()}


def folder_of(step: str, fingerprint: str) -> str:
    """Where a step's output lies in a work folder: ``encode/0123456789ab``."""
    return f"{BY_NAME[step].name}/{fingerprint[:12]}"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        raise SourceError(f"{path}: the removal list cannot be read ({e.strerror}); correct select.removal_list") from e
