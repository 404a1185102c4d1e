"""Writes to collections. Those to one collection take turns; each is on the disk before it is served."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import numpy as np

from server.domain.concurrency_limiter import ConcurrencyLimiter, remaining
from server.domain.errors import CollectionExists, EmbedderMismatch, InvalidRequest, Violation
from server.domain.rag import Document, IndexDescription, IndexIdentity, ReindexProgress, Written
from server.domain.texts import Embedder
from server.tasks.rag.changes import compare
from server.tasks.rag.descriptions import describe, identity, mismatch
from server.tasks.rag.reindex import reindexed
from server.vectorstore.admin import create_collection, drop_collection
from server.vectorstore.ann_index import build_index
from server.vectorstore.collection import Collection
from server.vectorstore.manager import CollectionManager, on_a_thread_of_its_own
from server.vectorstore.segment import Content, DocumentRecord, EmbedderRecord
from server.vectorstore.snapshot import Snapshot

T = TypeVar("T")

MAX_COLLECTIONS = 64
MAX_PASSAGES = 2_000_000  # of one collection; 384 dimensions are then 3 GB
_WAITING_WRITES = 8  # to one collection


class Keeper:
    """The writing half of `Retriever`, over the folder `index`."""

    def __init__(self, index: Path, embedder: Embedder) -> None:
        self._catalogue = CollectionManager(index)
        self._index = index
        self._embedder = embedder
        model = embedder.description.identity
        self._record = EmbedderRecord(model.name, model.version, model.digest)
        self._turns: WeakValueDictionary[str, ConcurrencyLimiter] = (
            WeakValueDictionary()
        )  # of the collections being written

    async def open(self) -> None:
        """Find and check all collections."""
        await self._catalogue.start()

    async def close(self) -> None:
        """Stop following and folding."""
        await self._catalogue.close()

    async def add(self, collection: str, documents: Sequence[Document], *, deadline: float) -> Written:
        """Add or replace by id; documents whose content is known are left alone, known texts are not embedded again.

        Raises InvalidRequest for ids that occur twice and for a full index, EmbedderMismatch, ServerOverloaded,
        StorageFull and DeadlineExceeded.
        """
        _refuse_duplicates(documents)
        records = [DocumentRecord(d.id, d.text, d.title, d.uri, d.metadata) for d in documents]
        async with self._turn(collection, deadline):
            target = await self._to_write(collection)
            changes = await asyncio.to_thread(compare, target.find if target else _nothing_there, records)
            count = len(changes.passages) + (target.snapshot.passage_count if target else 0)
            if count > MAX_PASSAGES:
                what = f"would bring the collection to {count} passages; {MAX_PASSAGES} is the limit"
                raise InvalidRequest([Violation("documents", what)])
            if target and not changes.texts:
                embedded = target.snapshot.vectors[:0]
            else:
                embedded = await self._embedder.embed(changes.texts or [collection], deadline=deadline)
                target = target or await self._made(collection, embedded.shape[1], deadline)
            snapshot = target.snapshot
            if changes.documents:
                vectors = changes.vectors(embedded)
                write = partial(target.commit, (), changes.documents, changes.passages, vectors)
                snapshot = await self._carried_out(write, deadline)
        return Written(
            identity(target, snapshot),
            added=len(changes.documents) - changes.updated,
            updated=changes.updated,
            unchanged=len(records) - len(changes.documents),
        )

    async def delete(self, collection: str, document_ids: Sequence[str], *, deadline: float) -> Written:
        """Remove by id; unknown ids are ignored. Errors are those of add, and CollectionNotFound."""
        async with self._turn(collection, deadline):
            self._catalogue.known(collection)
            target = await self._to_write(collection)
            if not target:
                raise self._catalogue.not_found(collection)
            there = await asyncio.to_thread(lambda: [each for each in set(document_ids) if target.find(each)])
            snapshot = target.snapshot
            if there:
                nothing = np.empty((0, 3), np.int32), np.empty((0, snapshot.base.vectors.shape[1]), np.float32)
                snapshot = await self._carried_out(partial(target.commit, tuple(there), (), *nothing), deadline)
        return Written(identity(target, snapshot), deleted=len(there))

    async def create(self, collection: str, *, deadline: float) -> IndexIdentity:
        """Make an empty collection. Raises CollectionExists."""
        async with self._turn(collection, deadline):
            if collection in self._catalogue.open or collection in self._catalogue.failures:
                raise CollectionExists(collection)
            sample = await self._embedder.embed([collection], deadline=deadline)
            return identity(await self._made(collection, sample.shape[1], deadline))

    async def drop(self, collection: str, *, deadline: float) -> IndexIdentity:
        """Remove a collection, a broken one too."""
        async with self._turn(collection, deadline):
            target = self._catalogue.open.get(collection)
            if not target and collection not in self._catalogue.failures:
                raise self._catalogue.not_found(collection)
            await self._carried_out(partial(drop_collection, self._index, collection), deadline)
            self._catalogue.forget(collection)
            return identity(target) if target else IndexIdentity(collection, 0)

    async def rollback(self, collection: str, generation: int, *, deadline: float) -> IndexIdentity:
        """Serve an old generation again, under a new number."""
        async with self._turn(collection, deadline):
            target = self._catalogue.known(collection)
            return identity(target, await self._carried_out(partial(target.rollback, generation), deadline))

    async def compact(self, collection: str, *, deadline: float) -> IndexDescription:
        """Fold now. Writes go on meanwhile."""
        remaining(deadline)
        target = self._catalogue.known(collection)
        await on_a_thread_of_its_own(target.fold)
        return describe(target, self._record)

    async def reindex(
        self, collection: str, *, deadline: float
    ) -> AsyncGenerator[ReindexProgress | IndexIdentity, None]:
        """Embed everything again. Writes wait."""
        async with self._turn(collection, deadline):
            target = self._catalogue.known(collection)
            work = reindexed(target, target.snapshot, self._embedder, self._record, deadline)
            async with aclosing(work) as events:
                async for event in events:
                    yield event if isinstance(event, ReindexProgress) else identity(target, event)

    async def _to_write(self, name: str) -> Collection | None:
        """The collection to write to, None for a new one. Another process may have written meanwhile."""
        if name in self._catalogue.open:
            await self._catalogue.follow(name)
        if name in self._catalogue.open or name in self._catalogue.failures:
            collection = self._catalogue.known(name)
            self._check_embedder(name, collection.snapshot)
            return collection
        if len(self._catalogue.open) + len(self._catalogue.failures) >= MAX_COLLECTIONS:
            raise InvalidRequest([Violation("collection", f"is new, and there are {MAX_COLLECTIONS} already")])
        return None

    async def _made(self, name: str, dimensions: int, deadline: float) -> Collection:
        """A new, empty collection."""
        content = Content(self._record, (), np.empty((0, 3), np.int32), np.empty((0, dimensions), np.float32))
        make = partial(create_collection, self._index, name, content, build_index)
        collection = await self._carried_out(make, deadline)
        self._catalogue.adopt(collection)
        return collection

    def _turn(self, name: str, deadline: float) -> AbstractAsyncContextManager[None]:
        turns = self._turns.setdefault(name, ConcurrencyLimiter(f'writing to collection "{name}"', 1, _WAITING_WRITES))
        return turns.take(deadline)

    async def _carried_out(self, work: Callable[[], T], deadline: float) -> T:
        """Do what must not be left half done: if the caller is cancelled, that is passed on after it has ended."""
        remaining(deadline)
        task = asyncio.create_task(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            raise
        finally:
            self._catalogue.written()

    def _check_embedder(self, name: str, snapshot: Snapshot) -> None:
        if (theirs := snapshot.base.embedder) != self._record:
            raise EmbedderMismatch(mismatch(name, theirs, self._record))


def _nothing_there(_: str) -> None:
    return None


def _refuse_duplicates(documents: Sequence[Document]) -> None:
    first: dict[str, int] = {}
    violations = [
        Violation(f"documents[{index}].id", f"is also that of documents[{first[document.id]}]")
        for index, document in enumerate(documents)
        if first.setdefault(document.id, index) != index
    ]
    if violations:
        raise InvalidRequest(violations)
