"""Finds passages in collections: `Retriever` over `server/stores` and FAISS.

A search reads the snapshot that was served when it began. A write puts a record into the log and then replaces the
reference to the snapshot, so neither ever waits for the other.
"""

import asyncio
import time
from functools import partial
from pathlib import Path

from server.domain.errors import GenerationNotReached
from server.domain.rag import (
    CollectionSummary,
    DocumentPage,
    GenerationDescription,
    IndexDescription,
    IndexIdentity,
    Query,
    Retrieval,
)
from server.domain.texts import Embedder
from server.inference.scheduler import Scheduler
from server.tasks.rag.descriptions import describe, describe_generation, identity, page, summaries
from server.tasks.rag.writer import Keeper
from server.vectorstore.collection import Collection
from server.vectorstore.search import search

_REACH_SECONDS = 2.0  # in which writes of other processes are noticed


class FaissRetriever(Keeper):
    """Implements `Retriever` over the folder `index`. Call open() before anything else, close() at the end."""

    def __init__(self, index: Path, embedder: Embedder, lanes: Scheduler) -> None:
        super().__init__(index, embedder)
        self._lanes = lanes

    async def retrieve(self, query: Query, *, deadline: float) -> Retrieval:
        """The `top_k` passages of the highest cosine."""
        collection = await self._reached(query.collection, query.min_generation, deadline)
        vector = await self._embedder.embed([query.text], deadline=deadline)
        snapshot = collection.snapshot
        self._check_embedder(collection.name, snapshot)
        found = partial(search, snapshot, vector, query.top_k, query.filters)
        passages = await self._lanes.run(found, deadline=deadline, name="search")
        return Retrieval(passages, identity(collection, snapshot), self._embedder.description.identity)

    def collections(self) -> list[CollectionSummary]:
        """All of them, sorted by name."""
        return summaries(self._catalogue.open.values(), self._catalogue.failures, self._record)

    async def describe(self, collection: str, min_generation: int = 0, *, deadline: float) -> IndexDescription:
        """What is served now, even if another embedder made it."""
        return describe(await self._reached(collection, min_generation, deadline), self._record)

    async def documents(self, collection: str, after: str, limit: int) -> DocumentPage:
        """Sorted by id; fewer than `limit` if they are large."""
        return await asyncio.to_thread(page, self._catalogue.known(collection), after, limit)

    async def generations(self, collection: str) -> tuple[IndexIdentity, list[GenerationDescription]]:
        """What is served, and what is kept."""
        known = self._catalogue.known(collection)
        kept = await asyncio.to_thread(known.generations)
        return identity(known), [describe_generation(generation) for generation in kept]

    async def _reached(self, name: str, number: int, deadline: float) -> Collection:
        """The collection, once it is at this generation. Raises GenerationNotReached if it does not come to it."""
        give_up = min(deadline, time.monotonic() + _REACH_SECONDS)
        while (collection := self._catalogue.known(name)).snapshot.number < number:
            if time.monotonic() >= give_up:
                raise GenerationNotReached(
                    f'collection "{name}" is at generation {collection.snapshot.number}, not yet at {number}'
                )
            await self._catalogue.follow(name)
            await asyncio.sleep(0.05)
        return collection
