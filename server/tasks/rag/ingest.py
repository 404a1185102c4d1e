"""Documents into collections: compare, split, embed, write. Writes to one collection run one after the other."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from server.domain.errors import CollectionNotFound, InvalidRequest, Violation
from server.domain.rag import Document, IndexIdentity, ReindexProgress, WriteResult
from server.domain.texts import Embedder
from server.tasks.rag.changes import compare
from server.tasks.rag.reindex import reindexed
from server.vectorstore.manager import CollectionManager

MAX_PASSAGES = 2_000_000  # of one collection; 384 dimensions are then 3 GB


class Ingester:
    """Writes to collections. A write is on disk and served when it returns.

    All methods raise EmbedderMismatch, ServerOverloaded, StorageFull and DeadlineExceeded.
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
            changes = await asyncio.to_thread(compare, collection.find if collection else _not_found, documents)
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
                raise CollectionNotFound(name, list(self._collections.open))
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
        """Embed all documents again: progress, then the new generation. Writes wait meanwhile."""
        async with self._collections.only_writer(name, deadline):
            collection = self._collections.get(name)
            async with aclosing(reindexed(collection, self._embedder, deadline=deadline)) as events:
                async for event in events:
                    yield event


def _not_found(_: str) -> None:
    return None


def _check_unique(documents: Sequence[Document]) -> None:
    first: dict[str, int] = {}
    violations = [
        Violation(f"documents[{index}].id", f"is also that of documents[{first[document.id]}]")
        for index, document in enumerate(documents)
        if first.setdefault(document.id, index) != index
    ]
    if violations:
        raise InvalidRequest(violations)
