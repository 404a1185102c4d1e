"""What is served of a collection: a generation of files, and over it the writes of the log, in memory.

Everything in the overlay only grows: rows are appended, and what a later write ended is marked with that write's
number. So a snapshot is a few views of the front part of growing arrays; taking one costs the same however much is in
the collection, and what is written afterwards cannot be seen through it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.vectorstore.log import Write
from server.vectorstore.segment import Content, DocumentRecord, Generation, Parts

_ALIVE = np.iinfo(np.int64).max
_PART = 65_536  # rows of vectors that a fold has in memory


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Snapshot:
    """A state of a collection. Of `overlay_documents` and the lists in `values` only the first rows belong to it.

    vectors, passages: as in `Generation`, of the documents of the log; `died` int64 [documents of the log] is the
    number of the write that ended each. `gone`: rows of the generation's documents that are no more, and
    `gone_passages` those of their passages. `values`: key, then value, to rows of documents of the log, ascending.
    """

    number: int
    base: Generation
    updated: datetime
    log_count: int
    document_count: int
    passage_count: int
    overlay_documents: list[DocumentRecord]
    vectors: NDArray[np.float32]
    passages: NDArray[np.int32]
    died: NDArray[np.int64]
    gone: NDArray[np.int64]
    gone_passages: NDArray[np.int64]
    values: dict[str, dict[str, list[int]]]

    def alive(self) -> NDArray[np.bool_]:
        """Which documents of the log are still there."""
        return self.died > self.number

    def base_alive(self) -> NDArray[np.bool_]:
        """Which documents of the generation are still there. As long as the collection: not for a search."""
        alive = np.ones(len(self.base.documents), np.bool_)
        alive[self.gone] = False
        return alive

    def content(self) -> Content:
        """Everything that is still there, for the next generation."""
        old, new = self.base_alive(), self.alive()
        old_rows = np.flatnonzero(np.repeat(old, np.diff(self.base.first)))
        new_rows = np.flatnonzero(new[self.passages[:, 0]])
        old_passages, new_passages = self.base.passages[old_rows], self.passages[new_rows]
        old_passages[:, 0] = (np.cumsum(old, dtype=np.int32) - 1)[old_passages[:, 0]]
        new_passages[:, 0] = (np.cumsum(new, dtype=np.int32) - 1 + np.count_nonzero(old))[new_passages[:, 0]]

        def documents() -> Iterator[DocumentRecord]:
            yield from (self.base.document(row) for row in np.flatnonzero(old).tolist())
            yield from (self.overlay_documents[row] for row in np.flatnonzero(new).tolist())

        def vectors() -> Iterator[NDArray[np.float32]]:
            for source, rows in ((self.base.vectors, old_rows), (self.vectors, new_rows)):
                yield from (source[rows[start : start + _PART]] for start in range(0, len(rows), _PART))

        passages = np.concatenate([old_passages, new_passages])
        shape = len(passages), self.base.vectors.shape[1]
        return Content(self.base.embedder, documents(), passages, Parts(shape, vectors()))


class Growing:
    """An array whose rows are appended. Views that were taken stay as they are: it moves when it is full."""

    def __init__(self, dtype: type[np.generic], *width: int) -> None:
        self._array: NDArray[Any] = np.empty((64, *width), dtype)
        self._count = 0

    def extend(self, rows: NDArray[Any]) -> None:
        """Append."""
        count = self._count + len(rows)
        if count > len(self._array):
            larger = np.empty((max(count, 2 * len(self._array)), *self._array.shape[1:]), self._array.dtype)
            larger[: self._count] = self.view
            self._array = larger
        self._array[self._count : count] = rows
        self._count = count

    @property
    def view(self) -> NDArray[Any]:
        """The rows so far."""
        return self._array[: self._count]


class Overlay:
    """The writes since `base`, one after another. Only the writer touches it; readers have snapshots.

    `number` is that of the last one.
    """

    def __init__(self, base: Generation) -> None:
        self._base = base
        self.number = base.number
        self._updated = base.created
        self._writes = 0
        self._rows: dict[str, int] = {}
        self._gone_rows: set[int] = set()
        self._documents: list[DocumentRecord] = []
        self._values: dict[str, dict[str, list[int]]] = {}
        self._vectors = Growing(np.float32, base.vectors.shape[1])
        self._passages = Growing(np.int32, 3)
        self._counts: list[int] = []
        self._died = Growing(np.int64)
        self._gone = Growing(np.int64)
        self._gone_passages = Growing(np.int64)
        self._document_count, self._passage_count = len(base.documents), len(base.vectors)

    def find(self, document_id: str) -> tuple[DocumentRecord, NDArray[np.int32], NDArray[np.float32]] | None:
        """A document with its passages and their vectors, None if it is not there."""
        if (row := self._rows.get(document_id)) is not None:
            owners = self._passages.view[:, 0]
            low, high = np.searchsorted(owners, [row, row + 1])
            return self._documents[row], self._passages.view[low:high], self._vectors.view[low:high]
        row = self._base_row(document_id)
        if row is None:
            return None
        low, high = self._base.first[row], self._base.first[row + 1]
        return self._base.document(row), self._base.passages[low:high], self._base.vectors[low:high]

    def apply(self, write: Write) -> None:
        """The next write. One that is older than the base changes nothing."""
        if write.number <= self.number:
            return
        for document_id in write.removed:
            self._end(document_id, write.number)
        counts = np.bincount(write.passages[:, 0], minlength=len(write.documents)).tolist()
        shift = np.array([len(self._documents), 0, 0], np.int32)
        for document, count in zip(write.documents, counts, strict=True):
            self._end(document.id, write.number)
            row = len(self._documents)
            self._rows[document.id] = row
            self._documents.append(document)
            self._counts.append(count)
            for key, value in document.metadata.items():
                self._values.setdefault(key, {}).setdefault(value, []).append(row)
        self._died.extend(np.full(len(write.documents), _ALIVE))
        self._passages.extend(write.passages + shift)
        self._vectors.extend(write.vectors)
        self._document_count += len(write.documents)
        self._passage_count += len(write.passages)
        self.number, self._updated = write.number, write.time
        self._writes += 1

    def snapshot(self) -> Snapshot:
        """The state after the last write."""
        return Snapshot(
            number=self.number,
            base=self._base,
            updated=self._updated,
            log_count=self._writes,
            document_count=self._document_count,
            passage_count=self._passage_count,
            overlay_documents=self._documents,
            vectors=self._vectors.view,
            passages=self._passages.view,
            died=self._died.view,
            gone=self._gone.view,
            gone_passages=self._gone_passages.view,
            values=self._values,
        )

    def _base_row(self, document_id: str) -> int | None:
        row = self._base.row_of(document_id)
        return None if row in self._gone_rows else row

    def _end(self, document_id: str, number: int) -> None:
        if (row := self._rows.pop(document_id, None)) is not None:
            self._died.view[row] = number
            count = self._counts[row]
        elif (row := self._base_row(document_id)) is not None:
            passages = np.arange(self._base.first[row], self._base.first[row + 1])
            self._gone_rows.add(row)
            self._gone.extend(np.array([row]))
            self._gone_passages.extend(passages)
            count = len(passages)
        else:
            return
        self._document_count -= 1
        self._passage_count -= count
