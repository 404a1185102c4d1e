"""What a search reads: a segment of files, and the memtable with the writes since.

Everything in the memtable only grows: rows are appended, and a document that a later write replaced or removed is
marked with that write's generation. So a snapshot is a few views of the front part of growing arrays. Taking one costs
the same however large the collection is, and later writes cannot be seen through it.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from server.domain.errors import EmbedderMismatch
from server.domain.models import ModelIdentity
from server.domain.rag import Document, IndexIdentity
from server.vectorstore.records import Write
from server.vectorstore.segment import Content, Segment

_LIVE = np.iinfo(np.int64).max
_PART = 65_536  # rows of vectors that a fold has in memory


class Snapshot:
    """A state of a collection. Of `documents` and the lists in `values` only the first rows belong to it.

    documents, vectors, passages: those of the memtable, arrays as in `Segment`. ended: int64, for each of the documents
    the generation that replaced or removed it. deleted, deleted_passages: rows of the segment that are no longer in
    the collection. values: metadata key to value to rows of `documents`, ascending.
    """

    def __init__(self, memtable: "Memtable") -> None:
        self.generation = memtable.generation
        self.index = IndexIdentity(memtable.segment.collection, memtable.generation)
        self.segment = memtable.segment
        self.updated = memtable.updated
        self.log_count = memtable.log_count
        self.document_count = memtable.document_count
        self.passage_count = memtable.passage_count
        self.documents = memtable.documents
        self.values = memtable.values
        self.vectors: NDArray[np.float32] = memtable.vectors.view
        self.dimensions = int(self.vectors.shape[1])
        self.passages: NDArray[np.int32] = memtable.passages.view
        self.ended: NDArray[np.int64] = memtable.ended.view
        self.deleted: NDArray[np.int64] = memtable.deleted.view
        self.deleted_passages: NDArray[np.int64] = memtable.deleted_passages.view

    def check_embedder(self, ours: ModelIdentity) -> None:
        """Raises EmbedderMismatch if another embedder made the vectors."""
        theirs = self.segment.info.model
        if theirs != ours:
            name = self.index.collection
            raise EmbedderMismatch(
                f'collection "{name}" was made with embedder {theirs.name} {theirs.version}, '
                f"the server runs {ours.name} {ours.version}. Embed it again with: quintet reindex {name}"
            )

    @cached_property
    def not_deleted(self) -> Any:
        """A faiss.IDSelector of the segment's passages in the collection. To make it takes longer than a search."""
        return faiss.IDSelectorNot(faiss.IDSelectorBatch(self.deleted_passages))

    def live(self) -> NDArray[np.bool_]:
        """Which documents of the memtable are in the collection."""
        return self.ended > self.generation

    def content(self) -> Content:
        """All documents, for the next segment."""
        old, new = np.ones(len(self.segment.documents), np.bool_), self.live()
        old[self.deleted] = False
        old_rows = np.flatnonzero(np.repeat(old, np.diff(self.segment.passage_starts)))
        new_rows = np.flatnonzero(new[self.passages[:, 0]])
        old_passages, new_passages = self.segment.passages[old_rows], self.passages[new_rows]
        old_passages[:, 0] = (np.cumsum(old, dtype=np.int32) - 1)[old_passages[:, 0]]
        new_passages[:, 0] = (np.cumsum(new, dtype=np.int32) - 1 + np.count_nonzero(old))[new_passages[:, 0]]

        def documents() -> Iterator[Document]:
            yield from (self.segment.document(row) for row in np.flatnonzero(old).tolist())
            yield from (self.documents[row] for row in np.flatnonzero(new).tolist())

        def vectors() -> Iterator[NDArray[np.float32]]:
            for source, rows in ((self.segment.vectors, old_rows), (self.vectors, new_rows)):
                yield from (source[rows[start : start + _PART]] for start in range(0, len(rows), _PART))

        passages = np.concatenate([old_passages, new_passages])
        return Content(self.segment.info.model, self.dimensions, documents(), passages, vectors())


class GrowingArray:
    """An array to which rows are appended. Views of it stay as they are: when it is full, the rows are copied."""

    def __init__(self, dtype: type[np.generic], *width: int) -> None:
        self._array: NDArray[Any] = np.empty((64, *width), dtype)
        self._count = 0

    def extend(self, rows: NDArray[Any]) -> None:
        count = self._count + len(rows)
        if count > len(self._array):
            larger = np.empty((max(count, 2 * len(self._array)), *self._array.shape[1:]), self._array.dtype)
            larger[: self._count] = self.view
            self._array = larger
        self._array[self._count : count] = rows
        self._count = count

    @property
    def view(self) -> NDArray[Any]:
        return self._array[: self._count]


class Memtable:
    """The writes since `segment`, up to `generation`. Only the writer uses it; searches use snapshots of it."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.generation = segment.info.generation
        self.updated = segment.info.create_time
        self.log_count = 0
        self.document_count, self.passage_count = len(segment.documents), len(segment.vectors)
        self.documents: list[Document] = []
        self.values: dict[str, dict[str, list[int]]] = {}
        self.vectors = GrowingArray(np.float32, segment.vectors.shape[1])
        self.passages = GrowingArray(np.int32, 3)
        self.ended = GrowingArray(np.int64)
        self.deleted = GrowingArray(np.int64)
        self.deleted_passages = GrowingArray(np.int64)
        self._rows: dict[str, int] = {}
        self._deleted_rows: set[int] = set()

    def find(self, document_id: str) -> tuple[Document, NDArray[np.int32], NDArray[np.float32]] | None:
        """A document with its passages and their vectors, None if it is not in the collection."""
        if (row := self._rows.get(document_id)) is not None:
            low, high = self._passages_of(row)
            return self.documents[row], self.passages.view[low:high], self.vectors.view[low:high]
        if (row := self._segment_row(document_id)) is not None:
            low, high = self.segment.passage_starts[row : row + 2]
            return self.segment.document(row), self.segment.passages[low:high], self.segment.vectors[low:high]
        return None

    def apply(self, write: Write) -> None:
        """Take over the next write. One that the segment already contains changes nothing."""
        if write.generation <= self.generation:
            return
        for document_id in (*write.removed, *(document.id for document in write.documents)):
            self._end(document_id, write.generation)
        first = len(self.documents)
        for row, document in enumerate(write.documents, first):
            self._rows[document.id] = row
            self.documents.append(document)
            for key, value in document.metadata.items():
                self.values.setdefault(key, {}).setdefault(value, []).append(row)
        self.ended.extend(np.full(len(write.documents), _LIVE))
        self.passages.extend(write.passages + np.array([first, 0, 0], np.int32))
        self.vectors.extend(write.vectors)
        self.document_count += len(write.documents)
        self.passage_count += len(write.passages)
        self.generation, self.updated = write.generation, write.time
        self.log_count += 1

    def _passages_of(self, row: int) -> tuple[int, int]:
        low, high = np.searchsorted(self.passages.view[:, 0], [row, row + 1])
        return int(low), int(high)

    def _segment_row(self, document_id: str) -> int | None:
        row = self.segment.row_of(document_id)
        return None if row in self._deleted_rows else row

    def _end(self, document_id: str, generation: int) -> None:
        """The document is replaced or removed, if it is in the collection."""
        if (row := self._rows.pop(document_id, None)) is not None:
            self.ended.view[row] = generation
            low, high = self._passages_of(row)
        elif (row := self._segment_row(document_id)) is not None:
            low, high = self.segment.passage_starts[row : row + 2].tolist()
            self._deleted_rows.add(row)
            self.deleted.extend(np.array([row]))
            self.deleted_passages.extend(np.arange(low, high))
        else:
            return
        self.document_count -= 1
        self.passage_count -= high - low
