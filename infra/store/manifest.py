"""Manifests: what a part or a step holds, written last. Done means a valid manifest, never that a file exists.

All are JSON with sorted keys and no times, host names or paths, so that equal work gives equal bytes.
"""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from infra.errors import StoreError


class Rows(BaseModel):
    """The ledger's line: ``in = out + filtered + duplicate + quarantined + removed``."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    entered: int = Field(default=0, alias="in")
    out: int = 0
    filtered: dict[str, int] = {}
    """By reason."""
    duplicate: dict[str, int] = {}
    """By the rule that found the duplicate."""
    quarantined: dict[str, int] = {}
    """By error class."""
    removed: dict[str, int] = {}
    """By removal list."""

    @property
    def balance(self) -> int:
        """0 when the ledger closes; positive when samples were lost, negative when some were doubled."""
        gone = sum(sum(d.values()) for d in (self.filtered, self.duplicate, self.quarantined, self.removed))
        return self.entered - self.out - gone

    def __add__(self, other: Rows) -> Rows:
        def add(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
            return {k: a.get(k, 0) + b.get(k, 0) for k in sorted({*a, *b})}

        return Rows(
            entered=self.entered + other.entered,
            out=self.out + other.out,
            filtered=add(self.filtered, other.filtered),
            duplicate=add(self.duplicate, other.duplicate),
            quarantined=add(self.quarantined, other.quarantined),
            removed=add(self.removed, other.removed),
        )


class FileEntry(BaseModel):
    """A stored file: its name, size and sha256."""

    model_config = ConfigDict(extra="forbid")

    name: str
    """Relative to the manifest's folder."""
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = 1
    step: str
    fingerprint: str
    files: list[FileEntry] = []
    tokens: dict[str, int] = {}
    """Token counts by modality: ``text``, ``image``, ``control``; only where a step makes tokens."""
    facts: dict[str, Any] = {}
    """What else a reader should know: figures, counts, the names of outputs."""

    def dump(self) -> bytes:
        return (
            json.dumps(self.model_dump(by_alias=True), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        ).encode()

    @classmethod
    def load(cls, data: bytes, where: str) -> Self:
        try:
            raw = json.loads(data)
            if raw.get("version", 0) > 1:
                raise StoreError(
                    f"{where}: format version {raw['version']}; this Calumma reads up to 1. Use a newer Calumma."
                )
            return cls.model_validate(raw)
        except (ValueError, AttributeError) as e:
            raise StoreError(f"{where}: not a manifest ({e}). Delete this file; the next run makes it anew.") from e


class PartManifest(_Manifest):
    """One work item's output: its files by name, size and sha256, and its line in the ledger."""

    format: Literal["calumma-part"] = "calumma-part"
    part: str
    source: str
    rows: Rows = Rows()


class StepManifest(_Manifest):
    """A finished step: the fingerprints it was made from, its ledger by source, and its parts.

    A later retry adds a manifest of its own beside it, ``manifest.r1.json``; the first one never changes.
    """

    format: Literal["calumma-step"] = "calumma-step"
    inputs: dict[str, str] = {}
    """Fingerprints of the steps it read."""
    rows: dict[str, Rows] = {}
    """The ledger by source."""
    parts: list[str] = []
    """Names of the parts, in source and part order."""
    parts_digest: str = ""
    """blake2b over the parts' manifests in order: equal digests, equal stores."""
    retry: int = 0
    """0: the step itself; k: what the k-th retry added to it."""
    retried: dict[str, dict[str, int]] = {}
    """Of a retry: rows by source and error class that it took out of the step's quarantine to try them again."""

    def with_retry(self, later: StepManifest) -> StepManifest:
        """This step together with what a retry added: rows that were tried again count once, where they ended."""
        rows = dict(self.rows)
        for source in sorted({*later.rows, *later.retried}):
            total = rows.get(source, Rows()) + later.rows.get(source, Rows())
            again = later.retried.get(source, {})
            left = {k: n - again.get(k, 0) for k, n in total.quarantined.items()}
            rows[source] = total.model_copy(
                update={
                    "entered": total.entered - sum(again.values()),
                    "quarantined": {k: n for k, n in left.items() if n},
                }
            )
        tokens = {k: self.tokens.get(k, 0) + later.tokens.get(k, 0) for k in sorted({*self.tokens, *later.tokens})}
        return self.model_copy(
            update={
                "rows": rows,
                "tokens": tokens,
                "parts": [*self.parts, *later.parts],
                "parts_digest": f"{self.parts_digest}+{later.parts_digest}",
                "facts": {**self.facts, **later.facts},
                "retry": later.retry,
            }
        )
