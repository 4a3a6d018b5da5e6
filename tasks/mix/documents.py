"""The ids of documents, for those who write or cut them: parts are read row group by row group, once each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.errors import StoreError
from infra.storage import Storage
from infra.store.documents import DOCUMENTS
from infra.store.tables import open_table
from model.vocabulary import BOS, EOS
from tasks.documents.captions import caption_number, image_first
from tasks.documents.ids import Ids, unpack_bits
from tasks.mix.group import Integers, Mask

_COLUMNS = ["sample_id", "kind", "picture", "captions", "tokens", "loss"]


class RowGroup:
    """Some neighbouring rows of a part: ids without a copy."""

    def __init__(self, table: pa.Table, seed: int) -> None:
        self._seed = seed
        self._ids = table["sample_id"].combine_chunks()
        self._pair = (table["kind"].to_numpy() == "pairs").tolist()
        self._tokens, self._at = _binary(table["tokens"])
        self._picture, self._picture_at = _binary(table["picture"])
        captions = table["captions"].combine_chunks()
        self._first_caption = captions.offsets.to_pylist()
        self._captions, self._caption_at = _binary(captions.values)
        self._loss = table["loss"].combine_chunks()

    def write(self, row: int, occurrence: int, out: Ids) -> int:
        """Writes the document at this occurrence into ``out``, as far as that reaches; how many ids it has."""
        if not self._pair[row]:
            begin, stop = self._at[row], self._at[row + 1]
            if stop - begin <= len(out):
                out[: stop - begin] = self._tokens[begin:stop]
            return stop - begin
        sample, first = self._ids[row].as_py(), self._first_caption[row]
        number = first + caption_number(sample, occurrence, self._seed, self._first_caption[row + 1] - first)
        caption = self._captions[self._caption_at[number] : self._caption_at[number + 1]]
        picture = self._picture[self._picture_at[row] : self._picture_at[row + 1]]
        size = len(picture) + len(caption) + 2
        if size <= len(out):
            before, after = (picture, caption) if image_first(sample, occurrence, self._seed) else (caption, picture)
            out[0], out[size - 1] = BOS, EOS
            out[1 : 1 + len(before)] = before
            out[1 + len(before) : size - 1] = after
        return size

    def ids(self, row: int, occurrence: int) -> Ids:
        """All ids of the document at this occurrence, (n,) uint16."""
        found = np.empty(self.write(row, occurrence, np.empty(0, np.uint16)), np.uint16)
        self.write(row, occurrence, found)
        return found

    def loss(self, row: int) -> Mask:
        """A conversation's loss bits, (n,) bool."""
        return unpack_bits(self._loss[row].as_py(), self._at[row + 1] - self._at[row])


class DocumentReader:
    """Goes through rows of a tokenize step's parts."""

    def __init__(self, store: Storage, seed: int) -> None:
        self._store, self._seed = store, seed

    def rows(self, part: str, rows_K: Integers) -> Iterator[tuple[RowGroup, int, int]]:
        """Each of some rows, which must ascend: the row group it is in, its row there, and its place among ``rows_K``.

        One row group is in memory at a time.
        """
        name = f"parts/{part}.parquet"
        file = open_table(self._store.get(name), DOCUMENTS, self._store.url(name))
        first = place = 0
        for number in range(file.num_row_groups):
            stop = first + file.metadata.row_group(number).num_rows
            end = int(np.searchsorted(rows_K, stop))
            if end > place:
                group = RowGroup(file.read_row_group(number, columns=_COLUMNS), self._seed)
                for at, row in enumerate(rows_K[place:end].tolist(), place):
                    yield group, row - first, at
            first, place = stop, end
        if place < len(rows_K):
            raise changed(part, int(rows_K[place]), f"it has {first:,} rows")


def changed(part: str, row: int, what: str) -> StoreError:
    """The error for a document that is not what the layout counts on."""
    return StoreError(
        f"document {part} row {row}: {what}. The document store changed after it was planned: delete the mix step's "
        "folder and run `mix` again."
    )


def _binary(column: pa.Array | pa.ChunkedArray) -> tuple[Ids, list[int]]:
    """A column of ids as one array, and where each row begins in it; one more for the end."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    _, offsets, data = array.buffers()
    ends: npt.NDArray[np.int32] = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    ids = np.frombuffer(data, "<u2", count=len(data) // 2) if data is not None else np.zeros(0, np.uint16)
    return ids, (ends // 2).tolist()
