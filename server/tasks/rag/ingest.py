"""Documents into collections: compare, split, embed, write. Writes to one collection run one after the other."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from server.domain.errors import CollectionNotFound, InvalidRequest, Violation
from server.domain.rag import Document, IndexIdentity, ReindexProgress, WriteResult, embedded_text
from server.domain.texts import Embedder
from server.tasks.rag.splitter import split
from server.vectorstore.layout import full_disk_as_error
from server.vectorstore.manager import CollectionManager
from server.vectorstore.segment import Content
from server.vectorstore.threads import run_to_end

MAX_PASSAGES = 2_000_000  # of one collection; 384 dimensions are then 3 GB
_REINDEXED_TOGETHER = 64  # documents whose passages are embedded between two reports of progress

Passages = NDArray[np.int32]
Vectors = NDArray[np.float32]
# A document with its passages and their vectors, None if it is not in the collection.
Find = Callable[[str], tuple[Document, Passages, Vectors] | None]


class Ingester:
    """Writes to collections. A write is on disk and served when it returns.

    Methods raise ServerOverloaded, StorageFull and DeadlineExceeded; add and delete also EmbedderMismatch.
    """

    def __init__(self, collections: CollectionManager, embedder: Embedder) -> None:
        self._collections = collections
        self._embedder = embedder

    async def add(self, name: str, documents: Sequence[Document], *, deadline: float) -> WriteResult:
        """Add or replace by id; makes the collection if it is new. Only changed texts are embedded.

        Raises InvalidRequest for ids that occur twice and for a full index.
        """
        _check_unique(documents)
        async with self._collections.only_writer(name, deadline):
            collection = await self._collections.writable(name)
            changes = await asyncio.to_thread(compare, collection.find if collection else lambda _: None, documents)
            count = len(changes.passages) + (collection.snapshot.passage_count if collection else 0)
            if count > MAX_PASSAGES:
                what = f"would bring the collection to {count} passages; {MAX_PASSAGES} is the limit"
                raise InvalidRequest([Violation("documents", what)])
            if collection and not changes.texts:
                embedded = collection.snapshot.vectors[:0]
            else:
                embedded = await self._embedder.embed(changes.texts or [name], deadline=deadline)
                collection = collection or await self._collections.create(name, embedded.shape[1], deadline=deadline)
            snapshot = collection.snapshot
            if changes.documents:
                vectors = changes.vectors(embedded)
                commit = partial(collection.commit, (), changes.documents, changes.passages, vectors)
                snapshot = await self._collections.write(commit, deadline)
        return WriteResult(
            snapshot.index,
            added_count=len(changes.documents) - changes.updated,
            updated_count=changes.updated,
            unchanged_count=len(documents) - len(changes.documents),
        )

    async def delete(self, name: str, document_ids: Sequence[str], *, deadline: float) -> WriteResult:
        """Remove by id; unknown ids are ignored. Raises CollectionNotFound."""
        async with self._collections.only_writer(name, deadline):
            self._collections.get(name)
            collection = await self._collections.writable(name)
            if not collection:  # another process has just removed it
                raise CollectionNotFound(name, ())
            found = await asyncio.to_thread(lambda: [each for each in set(document_ids) if collection.find(each)])
            snapshot = collection.snapshot
            if found:
                snapshot = await self._collections.write(partial(collection.commit, tuple(found)), deadline)
        return WriteResult(snapshot.index, deleted_count=len(found))

    async def create(self, name: str, *, deadline: float) -> IndexIdentity:
        """Make an empty collection. Raises CollectionExists."""
        async with self._collections.only_writer(name, deadline):
            sample = await self._embedder.embed([name], deadline=deadline)
            collection = await self._collections.create(name, sample.shape[1], deadline=deadline)
            return collection.snapshot.index

    async def reindex(self, name: str, *, deadline: float) -> AsyncGenerator[ReindexProgress | IndexIdentity, None]:
        """Embed all documents again, and make that the next generation: progress, then the new index. Writes wait.

        Vectors are kept in an unnamed temporary file, so that memory does not grow with the collection.
        """
        async with self._collections.only_writer(name, deadline):
            collection = self._collections.get(name)
            before = collection.snapshot
            documents = iter(before.content().documents)
            passages = [np.empty((0, 3), np.int32)]
            count = done = 0
            with tempfile.TemporaryFile(dir=collection.folder) as spool:
                sample = await self._embedder.embed([name], deadline=deadline)
                yield ReindexProgress(0, before.passage_count)
                while batch := await asyncio.to_thread(lambda: list(islice(documents, _REINDEXED_TOGETHER))):
                    changes = await asyncio.to_thread(compare, lambda _: None, batch)
                    vectors = sample[:0]
                    if changes.texts:
                        vectors = await self._embedder.embed(changes.texts, deadline=deadline)
                    with full_disk_as_error(name):
                        await asyncio.to_thread(spool.write, np.ascontiguousarray(vectors).data)
                    passages.append(changes.passages + np.array([count, 0, 0], np.int32))
                    count, done = count + len(batch), done + len(vectors)
                    yield ReindexProgress(done, max(done, before.passage_count))
                model, dimensions = self._embedder.description.identity, sample.shape[1]
                rows = _rows(spool, dimensions)
                content = Content(model, dimensions, before.content().documents, np.concatenate(passages), rows)
                # It runs to its end even if the caller is cancelled: `spool` must stay open for it.
                snapshot = await run_to_end(partial(collection.replace, content, before, "reindex"))
                yield snapshot.index


def _rows(spool: BinaryIO, dimensions: int) -> Iterator[NDArray[np.float32]]:
    spool.flush()
    spool.seek(0)
    while part := spool.read(4096 * dimensions * 4):
        yield np.frombuffer(part, np.float32).reshape(-1, dimensions)


def _check_unique(documents: Sequence[Document]) -> None:
    first: dict[str, int] = {}
    violations = [
        Violation(f"documents[{index}].id", f"is also that of documents[{first[document.id]}]")
        for index, document in enumerate(documents)
        if first.setdefault(document.id, index) != index
    ]
    if violations:
        raise InvalidRequest(violations)


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """Documents that differ from those in the collection, their passages, and the `texts` to embed for them.

    `known`: for each document its vectors, or None if they have to be made. Whole texts are compared: as fast as
    comparing digests, and never wrong.
    """

    documents: tuple[Document, ...]
    updated: int
    passages: Passages
    known: tuple[Vectors | None, ...]
    texts: list[str]

    def vectors(self, embedded: Vectors) -> Vectors:
        """Known and new vectors in the order of the passages; `embedded` are those of `texts`."""
        counts = np.bincount(self.passages[:, 0], minlength=len(self.documents)).tolist()
        parts: list[Vectors] = []
        taken = 0
        for vectors, count in zip(self.known, counts, strict=True):
            parts.append(embedded[taken : taken + count] if vectors is None else vectors)
            taken += count if vectors is None else 0
        return np.concatenate([embedded[:0], *parts])


def compare(find: Find, documents: Sequence[Document]) -> Changes:
    """The changes after which `documents` are in the collection."""
    changed: list[Document] = []
    rows: list[tuple[int, int, int]] = []
    known: list[Vectors | None] = []
    texts: list[str] = []
    updated = 0
    for document in documents:
        found = find(document.id)
        if found and found[0] == document:
            continue
        updated += found is not None
        if found and (found[0].text, found[0].title) == (document.text, document.title):
            rows += ((len(changed), start, end) for _, start, end in found[1].tolist())
            known.append(found[2])
        else:
            passages = split(document.text)
            rows += ((len(changed), start, end) for start, end in passages)
            known.append(None)
            texts += (embedded_text(document.title, document.text[start:end]) for start, end in passages)
        changed.append(document)
    return Changes(tuple(changed), updated, np.array(rows, np.int32).reshape(-1, 3), tuple(known), texts)
