"""Commit: how a part becomes real. Files first, the manifest last and only once.

A part's files are written whole and aside, moved to their names, and named by size and sha256 in a manifest that is
created, never replaced. A process killed before the manifest leaves nothing that counts; one killed after it leaves
a finished part. Two processes that make the same part write the same bytes, and the first manifest wins.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.manifest import FileEntry, PartManifest, StepManifest

STEP_MANIFEST = "manifest.json"
_RETRY = re.compile(r"manifest\.r[1-9][0-9]*\.json")
PARTS = "parts"


def entry(name: str, data: bytes) -> FileEntry:
    """The manifest's entry of a file given as bytes."""
    return FileEntry(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def entry_of_file(store: Storage, name: str) -> FileEntry:
    """The entry of a file already stored, read in blocks."""
    digest, size = hashlib.sha256(), 0
    with store.open(name) as f:
        while block := f.read(1 << 20):
            digest.update(block)
            size += len(block)
    return FileEntry(name=name, bytes=size, sha256=digest.hexdigest())


def part_manifest_name(part: str) -> str:
    """Where a part's manifest lies in its step's folder."""
    return f"{PARTS}/{part}.json"


def commit_part(store: Storage, manifest: PartManifest, files: Mapping[str, bytes]) -> PartManifest:
    """Writes ``files`` (names relative to ``parts/``), then the manifest that names them; the manifest that won.

    The given manifest's ledger must close, and its ``files`` are filled in here.
    """
    if manifest.rows.balance != 0:
        raise StoreError(
            f"{store.root}/{manifest.part}: the ledger is open by {manifest.rows.balance} "
            f"({manifest.rows.model_dump(by_alias=True)}). This is a fault in step {manifest.step}; "
            "nothing was committed."
        )
    if store.exists(part_manifest_name(manifest.part)):  # never touch the files of a committed part
        return load_part(store, manifest.part)
    manifest = manifest.model_copy(update={"files": [entry(n, files[n]) for n in sorted(files)]})
    store.need(sum(map(len, files.values())), f"part {manifest.part} of {manifest.step}")
    for name, data in sorted(files.items()):
        store.put(f"{PARTS}/{name}", data)
    if store.put_new(part_manifest_name(manifest.part), manifest.dump()):
        return manifest
    return load_part(store, manifest.part)


def load_part(store: Storage, part: str) -> PartManifest:
    """A committed part's manifest; StoreError if there is none."""
    name = part_manifest_name(part)
    return PartManifest.load(store.get(name), store.url(name))


def load_parts(store: Storage, parts: Iterable[str]) -> Iterator[PartManifest]:
    """The manifests of several committed parts, in the order asked for; StoreError at one that is missing."""
    names = [part_manifest_name(part) for part in parts]
    for name, data in zip(names, store.get_many(names), strict=True):
        yield PartManifest.load(data, store.url(name))


def step_manifest_name(retry: int = 0) -> str:
    """Where a step's manifest lies in its folder, or that of what its k-th retry added."""
    return f"manifest.r{retry}.json" if retry else STEP_MANIFEST


def done_parts(store: Storage) -> set[str]:
    """Names of the parts that are committed: one listing, no reading."""
    return {n.removesuffix(".json") for n in store.list(PARTS, ".json")}


def commit_step(store: Storage, manifest: StepManifest, parts: list[str]) -> StepManifest:
    """Sums the parts' ledgers and tokens into the step's manifest and writes it, last of all."""
    digest = hashlib.blake2b(digest_size=16)
    rows, tokens = dict(manifest.rows), dict(manifest.tokens)
    for p in load_parts(store, parts):
        digest.update(p.dump())
        rows[p.source] = rows[p.source] + p.rows if p.source in rows else p.rows
        for modality, count in p.tokens.items():
            tokens[modality] = tokens.get(modality, 0) + count
    manifest = manifest.model_copy(
        update={"rows": rows, "tokens": tokens, "parts": parts, "parts_digest": digest.hexdigest()}
    )
    name = step_manifest_name(manifest.retry)
    if store.put_new(name, manifest.dump()):
        return manifest
    return StepManifest.load(store.get(name), store.url(name))


def load_step(store: Storage) -> StepManifest | None:
    """The step's manifest together with what retries added, or None while it is not finished.

    StoreError if two of them list one part, which would double its samples.
    """
    manifest = load_own_manifest(store, 0)
    if manifest is None:
        return None
    for retry in own_retries(store):
        later = load_own_manifest(store, retry)
        if later is not None:
            if twice := sorted({*manifest.parts}.intersection(later.parts)):
                raise StoreError(
                    f"{store.url(step_manifest_name(retry))}: part {twice[0]} is in an earlier manifest, too; its "
                    "samples would count twice. Delete this file: what it adds is there already."
                )
            manifest = manifest.with_retry(later)
    return manifest


def retry_of(part: str) -> int:
    """The retry that a part is of, by its name; 0 for the step's own."""
    name, sign, number = part.rpartition(".r")
    return int(number) if name and sign and number.isdigit() else 0


def own_retries(store: Storage) -> list[int]:
    """The numbers of the retries that left a manifest of their own in a step's folder, in order; gaps are possible.

    A store that was finished after a retry holds what that found among its own parts.
    """
    return sorted(int(n.split(".")[1][1:]) for n in store.list(suffix=".json") if _RETRY.fullmatch(n))


def holds_retry(store: Storage, retry: int) -> bool:
    """Whether a finished store has what a retry found: added later, or read from the start along with the rest."""
    own = load_own_manifest(store, 0)
    whole = own is not None and any(retry_of(part) == retry for part in own.parts)
    return whole or load_own_manifest(store, retry) is not None


def load_own_manifest(store: Storage, retry: int) -> StepManifest | None:
    """What the step itself (0) or one of its retries committed, and nothing else; None while it has not."""
    name = step_manifest_name(retry)
    data = store.get_or_none(name)
    return None if data is None else StepManifest.load(data, store.url(name))
