"""Fingerprints: a step's output is addressed by what it was made from, so that equal work is never done twice.

A fingerprint hashes the step's version, its sections of the recipe, its inputs' fingerprints and, for ``scan``, the
identity of the sources' content. Paths, world size, precision and library versions are recorded elsewhere, not hashed.
A removal list counts for ``tokenize``, so that honouring it encodes nothing again. What a retry added to the stores
leaves their addresses alone and gives ``mix`` and all that follows new ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from infra.storage import Storage
from infra.store.commit import load_step, retry_of
from tasks.recipe import Recipe
from tasks.scan.inputs import file_bytes, identities
from tasks.sources import open_source
from tasks.steps import BY_NAME, STEPS, Step
from tasks.train.foreign import import_files, import_model_files
from tasks.train.weights import weights_digests

REMOVAL = "removal"
IMPORTED = "text_tokenizer.file"
IMPORT, MODEL_IMPORT = "image_tokenizer_import", "model_import"
CHECKPOINTS = {"keep_checkpoints", "keep_every"}
UNHASHED: dict[str, set[str]] = {
    "select": {"memory_mb"},
    "text_tokenizer": {"file", "code"},
    "pretrain": CHECKPOINTS,
    "finetune": CHECKPOINTS,
    "image_tokenizer_training": {"perceptual_weights", "face_network", "inception_weights"},
}
"""Keys of a section that decide how it is worked, not what comes out, and names of files, whose content counts."""

TRAINED_BY = {"sample_bytes", "weights", "max_sentence_bytes", "character_coverage"}
"""Keys of ``text_tokenizer`` that decide nothing where a file is imported."""


def fingerprint_of(content: Any) -> str:
    """blake2b-128 of canonical JSON, as 32 hex digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def ingredients(recipe: Recipe, workdir: Storage | None = None) -> dict[str, dict[str, Any]]:
    """What each step's fingerprint hashes, in step order; every value is plain JSON.

    ``workdir`` is where retries are looked for; without it the addresses are those of a folder without retries.
    """
    found: dict[str, dict[str, Any]] = {}
    for step in STEPS:
        content = _own_content(recipe, step)
        if step.name == "scan":
            content["sources"] = [s.model_dump(mode="json", exclude={"path", "expected"}) for s in recipe.sources]
            if beside := identities(recipe.scan, recipe.folder):
                content["files"] = beside
            content["content"] = {s.name: open_source(s, recipe.folder).digest() for s in recipe.sources}
        if step.name == "tokenize" and recipe.removal.list is not None:
            listed = file_bytes(recipe.removal.list, recipe.folder, "removal.list")
            content[REMOVAL] = hashlib.sha256(listed).hexdigest()
        if step.name == "text-tokenizer" and recipe.text_tokenizer.file is not None:
            imported = file_bytes(recipe.text_tokenizer.file, recipe.folder, "text_tokenizer.file")
            content[IMPORTED] = hashlib.sha256(imported).hexdigest()
        if step.name == "image-tokenizer":
            if recipe.image_tokenizer_import.file is not None:
                content[IMPORT] = import_files(recipe.image_tokenizer_import, recipe.folder).digest()
            else:
                content |= trained_with(recipe)
        if step.name == "pretrain" and recipe.model_import.path is not None:
            content[MODEL_IMPORT] = import_model_files(recipe.model_import, recipe.folder).digest()
        if step.name == "report" and recipe.text_tokenizer.code:
            content["text_tokenizer.code"] = sorted(recipe.text_tokenizer.code)
        content["inputs"] = {name: fingerprint_of(found[name]) for name in step.inputs}
        if step.name == "mix" and workdir is not None:
            documents = load_step(workdir.sub(folder_of("tokenize", content["inputs"]["tokenize"])))
            if documents is not None and any(map(retry_of, documents.parts)):
                content["retries"] = documents.parts_digest
        found[step.name] = content
    return found


def documents_fingerprint(recipe: Recipe, inputs: Mapping[str, str], removal: str) -> str:
    """The fingerprint of ``tokenize`` under a removal list of that digest, without a look at the sources.

    ``inputs`` are the fingerprints of what it reads; ``removal`` is the list's sha256, empty where there is none.
    """
    content = {REMOVAL: removal} if removal else {}
    return fingerprint_of(_own_content(recipe, BY_NAME["tokenize"]) | content | {"inputs": dict(inputs)})


def imported_fingerprint(recipe: Recipe, inputs: Mapping[str, str], imported: str) -> str:
    """The fingerprint of ``text-tokenizer`` where it imports a file of that sha256, read from these inputs."""
    content = {IMPORTED: imported, "inputs": dict(inputs)}
    return fingerprint_of(_own_content(recipe, BY_NAME["text-tokenizer"]) | content)


def trained_with(recipe: Recipe) -> dict[str, str]:
    """What counts of the weights that training the image tokenizer looks through; SourceError if one is missing."""
    return weights_digests(recipe.image_tokenizer_training, recipe.folder, faces=recipe.scan.faces)


def trained_fingerprint(recipe: Recipe, inputs: Mapping[str, str], digests: Mapping[str, str]) -> str:
    """The fingerprint of ``image-tokenizer`` where it trains with weights of these digests, read from these inputs."""
    content = _own_content(recipe, BY_NAME["image-tokenizer"])
    return fingerprint_of(content | dict(digests) | {"inputs": dict(inputs)})


def imported_weights_fingerprint(recipe: Recipe, inputs: Mapping[str, str], digest: Mapping[str, str]) -> str:
    """The fingerprint of ``image-tokenizer`` where it imports weights of that digest, read from these inputs."""
    content = {IMPORT: dict(digest), "inputs": dict(inputs)}
    return fingerprint_of(_own_content(recipe, BY_NAME["image-tokenizer"]) | content)


def imported_model_fingerprint(recipe: Recipe, inputs: Mapping[str, str], digest: Mapping[str, str]) -> str:
    """The fingerprint of ``pretrain`` where it starts from files of that digest, read from these inputs."""
    content = {MODEL_IMPORT: dict(digest), "inputs": dict(inputs)}
    return fingerprint_of(_own_content(recipe, BY_NAME["pretrain"]) | content)


def _own_content(recipe: Recipe, step: Step) -> dict[str, Any]:
    """What a step's own version and sections give to its fingerprint."""
    left_out = {REMOVAL, IMPORT, MODEL_IMPORT}  # which count by what their files say
    unhashed = dict(UNHASHED)
    if recipe.text_tokenizer.file is not None:
        unhashed["text_tokenizer"] = UNHASHED["text_tokenizer"] | TRAINED_BY
    if recipe.image_tokenizer_import.file is not None:
        left_out.add("image_tokenizer_training")
    if recipe.model_import.path is not None and not recipe.model_import.train:
        left_out.add("pretrain")
    sections = (s for s in step.sections if s not in left_out)
    return {"step": step.name, "version": step.version} | {
        section: _plain(getattr(recipe, section), unhashed.get(section)) for section in sections
    }


def fingerprints(recipe: Recipe, workdir: Storage | None = None) -> dict[str, str]:
    """The fingerprint of every step's output under this recipe, in a work folder."""
    return {name: fingerprint_of(content) for name, content in ingredients(recipe, workdir).items()}


def folder_of(step: str, fingerprint: str) -> str:
    """Where a step's output lies in a work folder: ``encode/0123456789ab``."""
    return f"{BY_NAME[step].name}/{fingerprint[:12]}"


def _plain(value: Any, left_out: set[str] | None = None) -> Any:
    return value.model_dump(mode="json", exclude=left_out) if hasattr(value, "model_dump") else value
