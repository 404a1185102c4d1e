"""Keeps collections and finds passages in them: exact search by cosine with FAISS over immutable generations.

A search reads the generation that was served when it began. A write makes the next generation aside, on disk first,
and then replaces the reference, so neither ever waits for the other. Writes to one collection take turns.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from server.engines.contents import compare, cut, merge, search
from server.engines.interfaces import (
    Document,
    Embedder,
    IndexDescription,
    IndexIdentity,
    ModelIdentity,
    Retrieval,
    Written,
)
from server.errors import CollectionNotFound, InvalidRequest, ModelUnavailable, Violation
from server.runtime.lanes import Lanes
from server.runtime.turns import Turns, remaining
from server.stores.collections import (
    Generation,
    collection_names,
    newest_number,
    open_collection,
    remedy,
    write_collection,
)
from server.stores.generation import Content, DocumentRecord, EmbedderRecord

T = TypeVar("T")

MAX_COLLECTIONS = 64
MAX_PASSAGES = 1_000_000  # of one collection; 384 dimensions are then 1.5 GB
_WAITING_WRITES = 8  # to one collection


class FaissRetriever:
    """Implements `Retriever` over the folder `index`. Call open() before anything else."""

    def __init__(self, index: Path, embedder: Embedder, lanes: Lanes) -> None:
        self._index = index
        self._embedder = embedder
        self._lanes = lanes
        identity = embedder.description.identity
        self._embedder_record = EmbedderRecord(identity.name, identity.version, identity.digest)
        self._served: dict[str, Generation] = {}
        self._failures: dict[str, str] = {}
        self._turns: WeakValueDictionary[str, Turns] = WeakValueDictionary()  # of the collections being written

    async def open(self) -> None:
        """Find and check all collections. One that is broken fails its own calls and no others."""
        for name in await asyncio.to_thread(collection_names, self._index):
            await self._reopen(name)

    async def retrieve(self, query: str, collection: str, top_k: int, *, deadline: float) -> Retrieval:
        """The `top_k` passages of the highest cosine. Raises CollectionNotFound and ModelUnavailable."""
        generation = self._usable(collection)
        vector = await self._embedder.embed([query], deadline=deadline)
        passages = await self._lanes.run(partial(search, generation.content, vector, top_k), deadline=deadline)
        return Retrieval(passages, _identity(generation), self._embedder.description.identity)

    async def add(self, collection: str, documents: Sequence[Document], *, deadline: float) -> Written:
        """Add or replace by id; documents whose content is known are left alone.

        Raises InvalidRequest for ids that occur twice and for a full index, ModelUnavailable, ServerOverloaded,
        StorageFull and DeadlineExceeded.
        """
        _refuse_duplicates(documents)
        records = [DocumentRecord(d.id, d.text, d.title, d.uri, d.metadata) for d in documents]
        async with self._turn(collection).take(deadline):
            base = await self._base(collection)
            content = base.content if base else None
            changed, updated_ids = await asyncio.to_thread(compare, content, records)
            if changed or not base:
                passages, texts = await asyncio.to_thread(cut, changed)
                _refuse_too_many(len(passages) + (len(content.passages) if content else 0))
                vectors = await self._embedder.embed(texts, deadline=deadline)
                fresh = Content(self._embedder_record, changed, passages, vectors)
                make = partial(merge, content, updated_ids, fresh) if content else lambda: fresh
                base = await self._replace(collection, base, make, deadline)
        return Written(
            _identity(base),
            added=len(changed) - len(updated_ids),
            updated=len(updated_ids),
            unchanged=len(records) - len(changed),
        )

    async def delete(self, collection: str, document_ids: Sequence[str], *, deadline: float) -> Written:
        """Remove by id; unknown ids are ignored. Errors are those of add, and CollectionNotFound."""
        self._known(collection)
        async with self._turn(collection).take(deadline):
            base = await self._base(collection)
            if not base:
                raise self._not_found(collection)
            doomed = set(document_ids).intersection(document.id for document in base.content.documents)
            if doomed:
                base = await self._replace(collection, base, partial(merge, base.content, doomed), deadline)
        return Written(_identity(base), deleted=len(doomed))

    def describe(self, collection: str) -> IndexDescription:
        """What is served now, even if another embedder made it. Raises CollectionNotFound and ModelUnavailable."""
        generation = self._known(collection)
        embedder = generation.content.embedder
        return IndexDescription(
            _identity(generation),
            document_count=len(generation.content.documents),
            passage_count=len(generation.content.passages),
            dimensions=generation.content.vectors.shape[1],
            embedder=ModelIdentity(embedder.name, embedder.version, embedder.digest),
            size_bytes=generation.size_bytes,
            updated=generation.updated,
        )

    def _known(self, name: str) -> Generation:
        if generation := self._served.get(name):
            return generation
        if failure := self._failures.get(name):
            raise ModelUnavailable(failure)
        raise self._not_found(name)

    def _usable(self, name: str) -> Generation:
        generation = self._known(name)
        if generation.content.embedder != self._embedder_record:
            theirs, ours = generation.content.embedder, self._embedder_record
            raise ModelUnavailable(
                f'collection "{name}" was made with embedder {theirs.name} {theirs.version}, '
                f"the server runs {ours.name} {ours.version}. {remedy(name)}"
            )
        return generation

    def _not_found(self, name: str) -> CollectionNotFound:
        return CollectionNotFound(name, list(self._served))

    def _turn(self, name: str) -> Turns:
        return self._turns.setdefault(name, Turns(f'writing to collection "{name}"', 1, _WAITING_WRITES))

    async def _base(self, name: str) -> Generation | None:
        """The generation to build upon, None for a new collection. Another process may have written meanwhile."""
        newest = await asyncio.to_thread(newest_number, self._index, name)
        served = self._served.get(name)
        if newest != (served.newest if served else 0):
            await self._reopen(name)
        if newest:
            return self._usable(name)
        if len(self._served) + len(self._failures) >= MAX_COLLECTIONS:
            raise InvalidRequest([Violation("collection", f"is new, and there are {MAX_COLLECTIONS} already")])
        return None

    async def _reopen(self, name: str) -> None:
        try:
            self._served[name] = await asyncio.to_thread(open_collection, self._index, name)
            self._failures.pop(name, None)
        except ModelUnavailable as failure:
            self._served.pop(name, None)
            self._failures[name] = failure.message

    async def _replace(
        self, name: str, base: Generation | None, make: Callable[[], Content], deadline: float
    ) -> Generation:
        """Write what `make` makes of `base`, and serve it."""
        remaining(deadline)

        def write() -> Generation:
            return write_collection(self._index, name, make(), replaces=base.newest if base else 0)

        async def write_and_serve() -> Generation:
            generation = await asyncio.to_thread(write)
            self._served[name] = generation
            self._failures.pop(name, None)
            return generation

        return await _to_its_end(write_and_serve())


async def _to_its_end(work: Coroutine[None, None, T]) -> T:
    """Await `work`; if the caller is cancelled meanwhile, pass that on only after the work has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _refuse_duplicates(documents: Sequence[Document]) -> None:
    first: dict[str, int] = {}
    violations = [
        Violation(f"documents[{index}].id", f"is also that of documents[{first[document.id]}]")
        for index, document in enumerate(documents)
        if first.setdefault(document.id, index) != index
    ]
    if violations:
        raise InvalidRequest(violations)


def _refuse_too_many(passage_count: int) -> None:
    if passage_count > MAX_PASSAGES:
        raise InvalidRequest(
            [
                Violation(
                    "documents", f"would bring the collection to {passage_count} passages; {MAX_PASSAGES} is the limit"
                )
            ]
        )


def _identity(generation: Generation) -> IndexIdentity:
    return IndexIdentity(generation.collection, generation.number)
