"""Documents into collections: compare, split, embed, write. Writes to one collection run one after the other."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from server.domain.access import Stored
from server.domain.concurrency_limiter import remaining
from server.domain.errors import CollectionExists, CollectionNotFound, InvalidRequest, Violation
from server.domain.rag import Document, IndexIdentity, WriteResult, embedded_text
from server.domain.texts import Embedder
from server.tasks.rag.quotas import StorageQuotas, written_bytes
from server.tasks.rag.splitter import split
from server.vectorstore.manager import CollectionManager

MAX_PASSAGES = 2_000_000  # of one collection; 384 dimensions are then 3 GB
_AGAIN_SECONDS = 0.01

Passages = NDArray[np.int32]
Vectors = NDArray[np.float32]
# A document with its passages and their vectors, None if it is not in the collection.
Find = Callable[[str], tuple[Document, Passages, Vectors] | None]


class Ingester:
    """Writes to collections. A write is on disk and served when it returns.

    Methods raise ServerOverloaded, StorageFull and DeadlineExceeded; add and delete also EmbedderMismatch; add and
    create also QuotaExceeded.
    """

    def __init__(self, collections: CollectionManager, embedder: Embedder, quotas: StorageQuotas) -> None:
        self._collections = collections
        self._embedder = embedder
        self._quotas = quotas

    async def add(self, name: str, documents: Sequence[Document], *, deadline: float) -> WriteResult:
        """Add or replace by id; makes the collection if it is new. Only changed texts are embedded.

        Raises InvalidRequest for ids that occur twice and for a full index.
        """
        _check_unique(documents)
        async with self._collections.only_writer(name, deadline):
            while True:
                try:
                    return await self._add(name, documents, deadline)
                except (CollectionExists, CollectionNotFound):  # another process has just made or removed it
                    await asyncio.sleep(min(_AGAIN_SECONDS, remaining(deadline)))

    async def _add(self, name: str, documents: Sequence[Document], deadline: float) -> WriteResult:
        collection = await self._collections.writable(name)
        find: Find = collection.find if collection else lambda _: None
        changes = await self._collections.reading.run(partial(compare, find, documents))
        count = len(changes.passages) + (collection.snapshot.passage_count if collection else 0)
        if count > MAX_PASSAGES:
            what = f"would bring the collection to {count} passages; {MAX_PASSAGES} is the limit"
            raise InvalidRequest([Violation("documents", what)])
        added = Stored(0 if collection else 1, len(changes.documents) - changes.updated)
        self._quotas.check(name, added)  # before the work; the size of vectors is not known yet
        if collection and not changes.texts:
            embedded = collection.snapshot.vectors[:0]
        else:
            embedded = await self._embedder.embed(changes.texts or [name], deadline=deadline)
        added = added._replace(size_bytes=written_bytes(changes.documents, len(changes.passages), embedded.shape[1]))
        with self._quotas.room(name, added):
            collection = collection or await self._collections.create(name, embedded.shape[1], deadline=deadline)
            self._collections.check_right(name)  # again after the embedding, which may have taken long
            snapshot = collection.snapshot
            if changes.documents:
                write = (), changes.documents, changes.passages, changes.vectors(embedded), self._collections.embedder
                snapshot = await self._collections.write(partial(collection.commit, *write), deadline)
        return WriteResult(
            snapshot.index,
            added_count=len(changes.documents) - changes.updated,
            updated_count=changes.updated,
            unchanged_count=len(documents) - len(changes.documents),
        )

    async def delete(self, name: str, document_ids: Sequence[str], *, deadline: float) -> WriteResult:
        """Remove by id; unknown ids are ignored. Raises CollectionNotFound."""
        async with self._collections.only_writer(name, deadline):
            collection = await self._collections.existing(name)
            found = await self._collections.reading.run(
                lambda: [each for each in set(document_ids) if collection.find(each)]
            )
            snapshot = collection.snapshot
            if found:
                snapshot = await self._collections.write(partial(collection.commit, tuple(found)), deadline)
        return WriteResult(snapshot.index, deleted_count=len(found))

    async def create(self, name: str, *, deadline: float) -> IndexIdentity:
        """Make an empty collection. Raises CollectionExists."""
        async with self._collections.only_writer(name, deadline):
            sample = await self._embedder.embed([name], deadline=deadline)
            while True:
                await self._collections.refresh(name)
                if name in self._collections.owners():
                    raise CollectionExists(name)  # whatever the caller's quota
                try:
                    with self._quotas.room(name, Stored(collections=1)):
                        collection = await self._collections.create(name, sample.shape[1], deadline=deadline)
                        return collection.snapshot.index
                except CollectionNotFound:  # another process has just removed it
                    await asyncio.sleep(min(_AGAIN_SECONDS, remaining(deadline)))


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
