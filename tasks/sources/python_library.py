"""The embedded text and code: Python's own library, its documentation topics, and its functions with their docstrings.

Everything comes from the interpreter that runs this, so the content follows its version: ``digest`` says so.
"""

from __future__ import annotations

import ast
import importlib
import platform
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field

from infra.config import Config
from infra.errors import SourceError
from tasks.sources.base import BadRow, EmbeddedSource, RawSample, Segment, digest_of

LICENCE = "PSF-2.0"
PACKAGES: tuple[str, ...] = (
    *("asyncio", "collections", "concurrent", "email", "html", "http", "importlib", "json", "logging"),
    *("multiprocessing", "sqlite3", "unittest", "urllib", "wsgiref", "xml", "zoneinfo"),
)
"""Packages of the library that are read beside its plain modules; the others are tests, tables or vendored code."""


class LibraryOptions(Config):
    """Options of type ``python-library``."""

    packages: tuple[str, ...] = PACKAGES
    max_bytes: int = Field(default=200_000, ge=1)
    """Longer modules are left out: most are tables."""


class TopicsOptions(Config):
    """Options of type ``python-topics``."""

    docstrings: bool = True
    """Also the docstring of every module, class and function of the plain modules, one text a module."""


class PythonLibrary(EmbeddedSource[str]):
    """One text a module of the standard library: its source code."""

    def digest(self) -> str:
        files = (f"{name} {(_library() / name).stat().st_size}" for name in self.entries())
        return digest_of("python-library 1", platform.python_version(), *files)

    def entries(self) -> Sequence[str]:
        options = self.options(LibraryOptions)
        return module_files(options.packages, options.max_bytes)

    def sample(self, row: int, entry: str) -> RawSample | BadRow:
        text = read_module(entry)
        if text is None:
            return BadRow(entry, row, "not-utf-8", "the module is not text in the encoding that it declares")
        return RawSample(entry, entry, row, segments=(Segment(text),), licence=LICENCE)


class PythonTopics(EmbeddedSource[tuple[str, str]]):
    """One text a topic of ``help("topics")``, and one for each module's docstrings."""

    def digest(self) -> str:
        docstrings = self.options(TopicsOptions).docstrings
        files = (f"{n} {(_library() / n).stat().st_size}" for n in module_files() if docstrings)
        return digest_of("python-topics 1", platform.python_version(), *files)

    def entries(self) -> Sequence[tuple[str, str]]:
        found = list(_topics())
        if self.options(TopicsOptions).docstrings:
            found += _docstrings()
        return found

    def sample(self, row: int, entry: tuple[str, str]) -> RawSample | BadRow:
        key, text = entry
        return RawSample(key, "pydoc", row, segments=(Segment(text),), licence=LICENCE)


@dataclass(frozen=True, slots=True)
class Function:
    """A documented function of the library, short enough to be an exercise."""

    module: str
    name: str
    signature: str
    """``gcd(a, b)``"""
    purpose: str
    """The docstring's first paragraph, on one line."""
    source: str
    """The whole function, at column 0."""


@cache
def functions(max_chars: int = 600) -> tuple[Function, ...]:
    """The plain modules' public functions that have a docstring and at most ``max_chars`` of source."""
    found = []
    for file in module_files():
        text, tree = _parsed(file)
        if tree is None:
            continue
        lines = text.splitlines(keepends=True)
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_") or node.decorator_list:
                continue
            purpose = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
            source = "".join(lines[node.lineno - 1 : node.end_lineno]).rstrip()
            if 12 <= len(purpose) <= 200 and len(source) <= max_chars:
                signature = f"{node.name}({ast.unparse(node.args)})"
                found.append(Function(file.removesuffix(".py"), node.name, signature, purpose, source))
    return tuple(found)


@cache
def module_files(packages: tuple[str, ...] = (), max_bytes: int = 200_000) -> tuple[str, ...]:
    """The library's plain modules and the named packages' modules, as paths within it, sorted."""
    root = _library()
    missing = [p for p in packages if not (root / p).is_dir()]
    if missing:
        raise SourceError(f"{root}: no package {', '.join(missing)} in this Python's library; correct `packages`")
    files = [*root.glob("*.py"), *(f for p in packages for f in (root / p).rglob("*.py"))]
    names = (f.relative_to(root) for f in files if 0 < f.stat().st_size <= max_bytes)
    return tuple(sorted(n.as_posix() for n in names if _is_source(n)))


def read_module(file: str) -> str | None:
    """A module's text in the encoding that it declares; None if it is not that."""
    try:
        with tokenize.open(_library() / file) as f:
            return f.read()
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None


def _is_source(name: Path) -> bool:
    """Not a test, and not the table of the machine that this Python was built on."""
    return not {"test", "tests", "__pycache__"} & set(name.parts) and not name.name.startswith("_sysconfigdata")


@cache
def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _parsed(file: str) -> tuple[str, ast.Module | None]:
    text = read_module(file)
    try:
        return text or "", ast.parse(text) if text else None
    except (SyntaxError, ValueError):
        return text or "", None


@cache
def _topics() -> tuple[tuple[str, str], ...]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as e:
        raise SourceError(
            "this Python lacks its documentation topics (module pydoc_data); install the complete standard library, "
            "or leave sources of type python-topics out of the recipe"
        ) from e
    return tuple((f"topic:{name}", textwrap.dedent(topics[name]).strip() + "\n") for name in sorted(topics))


@cache
def _docstrings() -> tuple[tuple[str, str], ...]:
    found = []
    for file in module_files():
        _, tree = _parsed(file)
        texts = list(_docstrings_of(tree, file.removesuffix(".py"))) if tree else []
        if texts:
            found.append((f"docstrings:{file}", "\n\n".join(texts) + "\n"))
    return tuple(found)


def _docstrings_of(node: ast.AST, name: str) -> Iterator[str]:
    """``name``, its docstring, then those of the public classes and functions inside, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text:
            yield f"{name}\n{textwrap.indent(text.strip(), '    ')}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield from _docstrings_of(child, f"{name}.{child.name}")
