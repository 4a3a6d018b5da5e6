"""Duplicates across a whole source, in flat memory: DuckDB with a limit, spilling to a folder.

A sample's place is (retry, sample_id): what an earlier generation holds stays before anything that a retry adds, and
within a generation the lowest id stays. Every rule is a minimum over a group of equal values, so the result depends
neither on the order of rows nor on threads. The rules, in order:

- ``exact``: equal content (its first 128 bits);
- ``perceptual``: of the pairs still there, equal perceptual hashes;
- ``near``: of the texts still there, the connected components of "shares a MinHash band", by hooking each row to the
  lowest label around it and short-cutting labels of labels until nothing changes (as in FastSV, Zhang et al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.errors import SourceError
from infra.scratch import own_folder
from tasks.scan.config import SelectConfig

KEEP, EXACT, PERCEPTUAL, NEAR = range(4)
REASONS = ("", "exact", "perceptual", "near")
DISK_PER_SAMPLE, DISK_PER_SAMPLE_NEAR = 200, 1200
"""Bytes on the disk that the search needs, at most: its tables, and what it spills while it works on them."""
_LOADED = 1 << 18
"""Rows that are handed to DuckDB at once; a part alone would be too few."""

Column = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """The kept samples of a part, in source order; n of them."""

    ids: Column
    """(n, 2): the sample id as two numbers, the high one first."""
    contents: Column
    """(n, 2): the first 128 bits of the content hash."""
    phashes: Column | None = None
    """(n,), of pairs."""
    near: tuple[npt.NDArray[np.int64], Column] | None = None
    """Row within the part and band, (m,) each."""


class Duplicates:
    """A source's samples in a database that lives as long as :func:`duplicates`. Add all, decide once, then read."""

    def __init__(self, connection: Any, config: SelectConfig) -> None:
        self._db, self._config = connection, config
        self._waiting: list[tuple[int, int, Candidates]] = []
        self._count = 0
        self._rows = 0
        self._db.execute(
            "create table samples (seq ubigint, retry uinteger, hi ubigint, lo ubigint, c1 ubigint, c2 ubigint, "
            "phash ubigint)"
        )
        self._db.execute("create table bands (seq ubigint, band ubigint)")

    def add(self, candidates: Candidates, retry: int = 0) -> tuple[int, int]:
        """Adds a part of a generation; the range of numbers under which :meth:`decisions` knows its samples."""
        start, self._count = self._count, self._count + len(candidates.ids)
        self._waiting.append((start, retry, candidates))
        self._rows += len(candidates.ids)
        if self._rows >= _LOADED:
            self._load()
        return start, self._count

    def decide(self, source: str) -> None:
        """Finds every duplicate; SourceError if two samples have one id."""
        self._load()
        self._refuse_equal_ids(source)
        self._db.execute("create table dropped (seq ubigint, fate utinyint)")
        if self._config.exact_duplicates:
            self._drop_equal("c1, c2", EXACT)
        if self._config.perceptual_duplicates:
            self._drop_equal("phash", PERCEPTUAL, "phash is not null")
        if self._config.near_duplicates:
            self._drop_near()
        self._db.execute("create table decided as select * from dropped order by seq")

    def decisions(self, start: int, stop: int) -> tuple[list[bytes], list[int]]:
        """Ids and fates (KEEP, EXACT, ...) of the samples with these numbers, in order."""
        found = self._db.execute(
            "select s.hi, s.lo, coalesce(d.fate, 0) as fate "
            "from (select * from samples where seq >= $1 and seq < $2) s "
            "left join (select * from decided where seq >= $1 and seq < $2) d on s.seq = d.seq order by s.seq",
            [start, stop],
        ).fetchnumpy()
        ids = np.stack([found["hi"], found["lo"]], axis=1).astype(">u8").tobytes()
        return [ids[i : i + 16] for i in range(0, len(ids), 16)], found["fate"].astype(int).tolist()

    def _load(self) -> None:
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if not waiting:
            return
        numbers = np.concatenate([start + np.arange(len(c.ids), dtype=np.uint64) for start, _, c in waiting])
        retries = np.concatenate([np.full(len(c.ids), retry, np.uint32) for _, retry, c in waiting])
        ids, contents = (np.concatenate([getattr(c, name) for _, _, c in waiting]) for name in ("ids", "contents"))
        columns = [pa.array(a) for a in (numbers, retries, ids[:, 0], ids[:, 1], contents[:, 0], contents[:, 1])]
        hashes = [
            pa.nulls(len(c.ids), pa.uint64()) if c.phashes is None else pa.array(c.phashes) for _, _, c in waiting
        ]
        names = ["seq", "retry", "hi", "lo", "c1", "c2", "phash"]
        self._insert("samples", pa.table([*columns, pa.chunked_array(hashes)], names))
        bands = [(start + c.near[0].astype(np.uint64), c.near[1]) for start, _, c in waiting if c.near is not None]
        if bands:
            both = [np.concatenate(column) for column in zip(*bands, strict=True)]
            self._insert("bands", pa.table([pa.array(a) for a in both], ["seq", "band"]))

    def _insert(self, table: str, rows: pa.Table) -> None:
        self._db.register("loaded", rows)
        self._db.execute(f"insert into {table} select * from loaded")
        self._db.unregister("loaded")

    def _refuse_equal_ids(self, source: str) -> None:
        found = self._db.execute(
            "select sum(n - 1)::bigint, arg_min(hi, (hi, lo)), arg_min(lo, (hi, lo)) "
            "from (select hi, lo, count(*) as n from samples group by hi, lo having count(*) > 1)"
        ).fetchone()
        if found[0]:
            raise SourceError(
                f"source {source}: {found[0]} samples have the key of another "
                f"(first id {found[1]:016x}{found[2]:016x}). "
                "A reader must give every sample its own key; see tasks/sources/base.py."
            )

    def _drop_equal(self, columns: str, fate: int, where: str = "true") -> None:
        """Of the samples still there, drops all but the first of each group with equal values."""
        names = [name.strip() for name in columns.split(",")]
        equal = " and ".join(f"s.{name} = g.{name}" for name in names)
        self._db.execute(
            f"insert into dropped with alive as (select * from samples s where {where} and not exists "
            "(select 1 from dropped d where d.seq = s.seq)), "
            f"groups as (select {columns}, min((retry, hi, lo)) as first from alive group by {columns} "
            "having count(*) > 1) "
            f"select s.seq, {fate} from alive s join groups g on {equal} where (s.retry, s.hi, s.lo) <> g.first"
        )

    def _drop_near(self) -> None:
        """Decided generation by generation: what a retry adds must not join two groups of before."""
        self._db.execute(
            "create table shared as with alive as (select b.* from bands b where not exists "
            "(select 1 from dropped d where d.seq = b.seq)), "
            "often as (select band from alive group by band having count(*) > 1) "
            "select a.seq, a.band from alive a join often using (band)"
        )
        # The rows that share a band at all, numbered by place: a label is the lowest number of a component.
        self._db.execute(
            "create table nodes as select s.seq, s.retry, row_number() over (order by s.retry, s.hi, s.lo) as node "
            "from samples s join (select distinct seq from shared) d using (seq)"
        )
        self._db.execute("create table edges as select n.node, s.band, n.retry from shared s join nodes n using (seq)")
        for (retry,) in self._db.execute("select distinct retry from nodes order by 1").fetchall():
            self._label(retry)
            self._db.execute(
                f"insert into dropped select n.seq, {NEAR} from nodes n join labels l using (node) "
                "where n.retry = $1 and l.label < n.node",
                [retry],
            )
        for table in ("shared", "nodes", "edges", "labels"):
            self._db.execute(f"drop table if exists {table}")

    def _label(self, retry: int) -> None:
        """Fills ``labels`` with the lowest node of each node's component, among generations up to this one."""
        self._db.execute(
            "create or replace table labels as select node, node as label from nodes where retry <= $1", [retry]
        )
        while True:
            self._db.execute(
                "create or replace table hooked as with lowest as (select e.band, min(l.label) as label "
                "from edges e join labels l using (node) group by e.band) "
                "select l.node, min(least(l.label, b.label)) as label from labels l join edges e using (node) "
                "join lowest b using (band) group by l.node"
            )
            self._db.execute(
                "create or replace table shortcut as select h.node, least(h.label, j.label) as label "
                "from hooked h join hooked j on j.node = h.label"
            )
            (changed,) = self._db.execute(
                "select count(*) from labels l join shortcut s using (node) where l.label <> s.label"
            ).fetchone()
            self._db.execute("drop table hooked")
            self._db.execute("drop table labels")
            self._db.execute("alter table shortcut rename to labels")
            if not changed:
                return


@contextmanager
def duplicates(config: SelectConfig, folder: Path) -> Iterator[Duplicates]:
    """A database for one source; its files, in a folder of their own below ``folder``, go at the end."""
    import duckdb

    with own_folder(folder) as own:
        settings = {
            "memory_limit": f"{config.memory_mb}MB",
            "temp_directory": f"{own}/spilled",
            "preserve_insertion_order": "false",
            "threads": "1",
        }
        connection = duckdb.connect(f"{own}/select.duckdb", config=settings)
        try:
            yield Duplicates(connection, config)
        finally:
            connection.close()
