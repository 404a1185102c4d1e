"""Vectors of documents in an unnamed temporary file, so that memory does not grow by them."""

import tempfile
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from server.domain.models import ModelIdentity
from server.domain.rag import Document
from server.vectorstore.damage import refusals_as_errors
from server.vectorstore.segment import Content
from server.vectorstore.snapshot import Snapshot

_PART = 65_536  # rows of vectors in memory


class Spool:
    """The passages and vectors of documents, by title and text: what is written again is known.

    `dimensions` are those of the vectors. Raises StorageFull. Use it on one thread at a time.
    """

    def __init__(self, name: str, folder: Path, dimensions: int) -> None:
        self.dimensions = dimensions
        self._name = name
        self._rows: dict[bytes, tuple[int, int]] = {}  # digest of title and text to first and last row
        self._spans: list[NDArray[np.int32]] = []  # [n, 2]: first code point of a passage, the one after the last
        self._count = 0
        with refusals_as_errors(name, folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def missing(self, documents: Sequence[Document]) -> list[Document]:
        """Those whose vectors it lacks, each text once."""
        digests = {_digest(document): document for document in documents}
        return [document for digest, document in digests.items() if digest not in self._rows]

    def passage_count(self, documents: Sequence[Document]) -> int:
        """Passages of documents that it has."""
        return sum(end - start for start, end in map(self._rows.__getitem__, map(_digest, documents)))

    def add(
        self,
        documents: Sequence[Document],
        passages: Sequence[Sequence[tuple[int, int]]],
        vectors: NDArray[np.float32],
    ) -> None:
        """Keep the vectors of the passages, float32 [all passages, dimensions], in their order."""
        with refusals_as_errors(self._name):
            self._file.write(np.ascontiguousarray(vectors, np.float32).data)
        for document, spans in zip(documents, passages, strict=True):
            self._rows[_digest(document)] = self._count, self._count + len(spans)
            self._spans.append(np.array(spans, np.int32).reshape(-1, 2))
            self._count += len(spans)

    def content(self, snapshot: Snapshot, model: ModelIdentity) -> Content:
        """All documents of the snapshot, which it has, with their vectors."""
        owners: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        for owner, document in enumerate(snapshot.content().documents):
            start, end = self._rows[_digest(document)]
            owners.append(np.full(end - start, owner, np.int32))
            rows.append(np.arange(start, end))
        order = np.concatenate(rows)
        spans = np.concatenate([np.empty((0, 2), np.int32), *self._spans])[order]
        passages = np.column_stack([np.concatenate(owners), spans])
        return Content(model, self.dimensions, snapshot.content().documents, passages, self._vectors(order))

    def _vectors(self, order: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        if not len(order):
            return
        self._file.flush()
        vectors = np.memmap(self._file, np.float32, "r", shape=(self._count, self.dimensions))
        for start in range(0, len(order), _PART):
            yield vectors[order[start : start + _PART]]


def _digest(document: Document) -> bytes:
    title = document.title.encode()
    return blake2b(b"%d %b%b" % (len(title), title, document.text.encode()), digest_size=16).digest()
