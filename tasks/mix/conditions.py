"""Which documents the mixture may use: the recipe's ``where``, SQL conditions over the stores' columns.

A condition sees one document's columns and nothing else: no files, no settings, no other documents, no chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.errors import RecipeError
from tasks.mix.config import Conditions
from tasks.mix.expressions import NoCondition, columns_of

COLUMNS: dict[str, pa.DataType] = {
    # of the document store
    "kind": pa.string(),
    "category": pa.string(),
    "tokens": pa.int64(),  # of the whole document, with its first caption
    "image_tokens": pa.int64(),
    "answer_tokens": pa.int64(),  # of a conversation, the tokens that end its answers included
    "captions": pa.int64(),
    # of the sample store
    "key": pa.string(),
    "file": pa.string(),
    "licence": pa.string(),
    "language": pa.string(),  # where scan.language is on
    "pictures": pa.int64(),
    "dropped_images": pa.int64(),
    "width": pa.int64(),  # of the first picture's original; NULL without pictures
    "height": pa.int64(),
    "faces": pa.int64(),  # over all pictures, where scan.faces is on
    "turns": pa.int64(),  # answers of a conversation
}
"""What a condition may speak of; beside these ``score_NAME`` for every scorer that ``scan`` ran."""
SCORE = "score_"
OF_SAMPLES = ("key", "file", "licence", "language", "pictures", "dropped_images", "width", "height", "faces", "turns")
"""Columns that take a look into the sample store."""

Mask = npt.NDArray[np.bool_]


class Where:
    """The conditions of one source, checked when made.

    Raises:
        RecipeError: one is no condition over these columns (it names the nearest), or speaks of a score by a name that
            two scorers share.
    """

    def __init__(self, key: str, conditions: Conditions, scores: tuple[str, ...]) -> None:
        """``key`` of the recipe, for errors; ``scores``: the scorers of the recipe's scan."""
        self._key, self._conditions = key, conditions
        self._types = COLUMNS | {column_of(name): pa.float64() for name in scores}
        empty = pa.table({name: pa.array([], kind) for name, kind in self._types.items()})
        named: set[str] = set()
        for name, condition in conditions.items():
            try:
                own = columns_of(condition, self._types)
            except NoCondition as e:
                raise self._wrong(name, condition, str(e)) from e
            for shared in own & {first for first, second in combinations(map(column_of, scores), 2) if first == second}:
                raise self._wrong(name, condition, f"several of {', '.join(scores)} are {shared} here; rename a scorer")
            self._ask(name, condition, empty)
            named |= own
        self.columns = tuple(name for name in self._types if name in named)
        """The columns that are needed to answer."""

    def failed(self, columns: Mapping[str, pa.Array], rows: int) -> npt.NDArray[np.int64]:
        """(N,): 0 for a document that may stay, else which condition, from 1, is the first that it does not meet."""
        found_N = np.zeros(rows, np.int64)
        if not self._conditions:
            return found_N
        table = pa.table(
            {name: pc.cast(columns[name], self._types[name]) for name in self.columns} or {"none": found_N}
        )
        table = table.append_column("number of the row", pa.array(np.arange(rows)))
        for number, (name, condition) in enumerate(self._conditions.items(), 1):
            kept = self._ask(name, condition, table)
            out_N = np.ones(rows, np.bool_)
            out_N[kept] = False
            found_N[out_N & (found_N == 0)] = number
        return found_N

    @property
    def reasons(self) -> tuple[str, ...]:
        """Names of the conditions, in their order."""
        return tuple(self._conditions)

    def _ask(self, name: str, condition: str, table: pa.Table) -> list[int]:
        """Numbers of the rows for which the condition is true."""
        import duckdb

        try:
            with duckdb.connect(config={"enable_external_access": "false", "threads": 1}) as connection:
                relation = connection.from_arrow(table)
                expression = duckdb.SQLExpression(condition)
                if (kind := str(relation.select(expression).types[0])) != "BOOLEAN":
                    raise self._wrong(name, condition, f"it is {kind}, not true or false")
                kept = relation.filter(expression)
                if table.num_rows == 0:
                    kept.fetchall()
                    return []
                return [row[0] for row in kept.select('"number of the row"').fetchall()]
        except duckdb.Error as e:
            raise self._wrong(name, condition, str(e).splitlines()[0]) from e

    def _wrong(self, name: str, condition: str, what: str) -> RecipeError:
        return RecipeError(
            f"{self._key}.{name}: {condition!r}: {what}. Expected one SQL condition over a document's columns, "
            "for example: tokens <= 4096 AND licence LIKE 'CC BY%'"
        )


def column_of(scorer: str) -> str:
    """What conditions call a scorer's result."""
    return SCORE + scorer.replace("-", "_")


def sample_columns(table: pa.Table, wanted: tuple[str, ...]) -> dict[str, pa.Array]:
    """What conditions see of a sample-store table, whose nested columns :func:`to_read` has chosen."""
    found: dict[str, pa.Array] = {}
    for name in wanted:
        if name in ("key", "file", "licence", "language", "dropped_images"):
            found[name] = table[name].combine_chunks()
        elif name == "turns":
            found[name] = pa.array([_turns(segments) for segments in table["segments"].to_pylist()], pa.int64())
        elif name.startswith(SCORE):
            rows = table["scores"].to_pylist()
            found[name] = pa.array([_score(scores, name) for scores in rows], pa.float64())
        elif name in OF_SAMPLES:
            images = table["images"].to_pylist()
            found[name] = pa.array([_of_images(row, name) for row in images], pa.int64())
    return found


def to_read(wanted: tuple[str, ...]) -> list[str]:
    """The sample store's columns, nested ones by path, that these columns of conditions come from."""
    paths = {
        "turns": ["segments.list.element.role"],
        "pictures": ["images.list.element.width"],
        "width": ["images.list.element.width"],
        "height": ["images.list.element.height"],
        "faces": ["images.list.element.width", "images.list.element.faces.list.element.x"],
    }
    found = ["sample_id"]
    for name in wanted:
        if name.startswith(SCORE):
            found.append("scores")
        elif name in OF_SAMPLES:
            found += paths.get(name, [name])
    return list(dict.fromkeys(found))


def _turns(segments: list[dict[str, Any]]) -> int:
    roles = [s["role"] == "assistant" for s in segments]
    return sum(own and not before for own, before in zip(roles, [False, *roles], strict=False))


def _score(scores: list[dict[str, Any]], name: str) -> float | None:
    own = (s["value"] for s in scores if column_of(s["name"]) == name)
    return next(own, None)


def _of_images(images: list[dict[str, Any]], name: str) -> int | None:
    if name == "pictures":
        return len(images)
    if name == "faces":
        return sum(len(image["faces"]) for image in images)
    return images[0][name] if images else None
