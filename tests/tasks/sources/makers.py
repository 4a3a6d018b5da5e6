"""Small sources of every format, with bad rows among the good ones: for tests of readers, of steps, and benchmarks.

``FORMATS[name].make(folder, good, bad)`` writes a source below ``folder`` with rows number 0 to ``good - 1``, and a bad
row of each kind in ``bad`` spread among them. It returns the source's configuration, whose path is absolute, and the
faults that reading it must report. The text of good row n holds ``number n.`` (its ids do, in a source of tokens), and
its picture is unlike every other.
"""

from __future__ import annotations

from functools import partial

from tests.tasks.sources import making_documents as documents
from tests.tasks.sources import making_pairs as pairs
from tests.tasks.sources.making import PACK, Format

_LINE = ("bad-json", "no-object", "not-utf-8", "missing-field", "bad-field")
_PAIR = (*_LINE, "missing-image", "path-escape", "not-an-image")
_TAR = ("no-picture", "missing-caption", "duplicate-member", "bad-member", "path-escape", "bad-json", "not-utf-8")
_FETCHED = ("failed-to-download", "failed-to-resize", "gone", "missing-caption", "not-an-image")

FORMATS: dict[str, Format] = {
    **{f"pairs-jsonl{p}": Format(partial(pairs.pairs_jsonl, p), "pairs", _PAIR) for p in PACK},
    **{
        f"pairs-{kind}{p}": Format(
            partial(pairs.pairs_table, kind, p),
            "pairs",
            ("bad-columns", "not-utf-8", "missing-image", "path-escape", "not-an-image"),
        )
        for kind in ("tsv", "csv")
        for p in PACK
    },
    "pairs-folder": Format(pairs.pairs_folder, "pairs", ("missing-caption", "not-utf-8", "not-an-image")),
    **{
        f"webdataset{p}": Format(partial(pairs.webdataset, p), "webdataset", (*_TAR, "too-large", "not-an-image"))
        for p in PACK
    },
    **{
        f"img2dataset-{k}": Format(partial(pairs.img2dataset, k), "img2dataset", _FETCHED)
        for k in ("webdataset", "files", "parquet")
    },
    **{
        f"pairs-parquet-{k}": Format(
            partial(pairs.pairs_parquet, k),
            "pairs-parquet",
            (
                "missing-image" if k == "path" else "no-picture",
                "missing-caption",
                "not-utf-8",
                "not-an-image",
                *(["path-escape"] if k == "path" else []),
            ),
        )
        for k in ("bytes", "struct", "path")
    },
    **{f"text-jsonl{p}": Format(partial(documents.text_jsonl, p), "text", _LINE) for p in PACK},
    "text-parquet": Format(documents.text_parquet, "text", ("missing-field", "not-utf-8")),
    **{
        f"text-plain{p}": Format(
            partial(documents.text_plain, p), "text", ("not-utf-8", *(["damaged-file"] if p else []))
        )
        for p in PACK
    },
    "interleaved": Format(documents.interleaved, "interleaved", _PAIR),
    "messages": Format(documents.messages, "messages", (*_LINE, "missing-image", "not-an-image")),
    "obelics": Format(
        documents.obelics,
        "obelics",
        ("bad-structure", "unlike-lengths", "missing-field", "not-downloaded", "not-an-image"),
    ),
    "html": Format(documents.html, "html", ("bad-markup", "not-utf-8", "not-downloaded", "not-an-image")),
    "markdown": Format(documents.markdown, "markdown", ("too-large", "not-utf-8", "missing-image", "not-an-image")),
    **{
        f"tokens-parquet-{k}": Format(partial(documents.tokens_parquet, k), "tokens", ("bad-tokens", "missing-field"))
        for k in ("list", "binary")
    },
    **{
        f"tokens-jsonl{p}": Format(
            partial(documents.tokens_jsonl, p), "tokens", ("bad-tokens", "missing-field", "bad-json", "no-object")
        )
        for p in PACK
    },
    "mds": Format(documents.tokens_mds, "mds", ("bad-tokens",)),
    "megatron": Format(documents.tokens_megatron, "megatron", ("bad-tokens",)),
}
"""Every format, by a name for tests: the type, and how it is packed."""
