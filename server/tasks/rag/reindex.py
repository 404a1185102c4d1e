"""Reindexing: all documents of a collection are embedded again, in the background, while it is read and written to.

Calls observe the work. It goes on when they leave, and a later call joins it. When the server stops it ends, and the
next call starts it anew. Documents that are written meanwhile are embedded in rounds; only the last step, which embeds
the few that are left and writes the files, keeps other writers waiting.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from server.domain.concurrency_limiter import ConcurrencyLimiter
from server.domain.errors import CollectionNotFound, QuintetError, ServerStopping, Unavailable
from server.domain.rag import Document, IndexIdentity, ReindexProgress, embedded_text
from server.domain.texts import Embedder
from server.tasks.rag.splitter import split
from server.tasks.rag.spool import Spool
from server.vectorstore.collection import Collection
from server.vectorstore.manager import CollectionManager
from server.vectorstore.segment import Content
from server.vectorstore.snapshot import Snapshot

log = logging.getLogger(__name__)
_TOGETHER = 64  # documents whose passages are embedded between two reports of progress
_ROUNDS = 5  # at most, before the last step
_WAITING = 8  # collections
_EMBED_SECONDS = 60.0
_PATIENCE_SECONDS = 60.0  # with an embedder that is overloaded or being replaced

Vectors = NDArray[np.float32]


@dataclass(eq=False)
class Running:
    """Reindexing of one collection. `changed` is set, and replaced, whenever `progress` changes, and at the end."""

    progress: ReindexProgress
    task: asyncio.Task[IndexIdentity] = field(init=False)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def report(self, progress: ReindexProgress | None = None) -> None:
        self.progress = progress or self.progress
        self.changed.set()
        self.changed = asyncio.Event()


class Reindexer:
    """Reindexes one collection after the other."""

    def __init__(self, collections: CollectionManager, embedder: Embedder) -> None:
        self._collections = collections
        self._embedder = embedder
        self._limit = ConcurrencyLimiter("reindexing", 1, _WAITING)
        self._running: dict[str, Running] = {}
        self._stopping = False

    async def observe(self, name: str) -> AsyncGenerator[ReindexProgress | IndexIdentity, None]:
        """Start reindexing, or join it: the latest progress whenever it has changed, then the new index.

        Raises CollectionNotFound, CollectionBroken, StorageFull, ServerOverloaded, what the embedder raises, and
        ServerStopping. A caller that stops reading delays nothing.
        """
        collection = await self._collections.find(name)
        running = self._running.get(name) or self._start(name, collection)
        seen: ReindexProgress | None = None
        while True:
            changed, is_done = running.changed, running.task.done()
            if running.progress != seen:
                seen = running.progress
                yield seen
            elif is_done:
                break
            else:
                await changed.wait()
        if running.task.cancelled():
            raise ServerStopping("reindexing ended: the server stops, or opens its collections again. Start it anew")
        yield running.task.result()

    def _start(self, name: str, collection: Collection) -> Running:
        if self._stopping:
            raise ServerStopping("the server is stopping")
        running = self._running[name] = Running(ReindexProgress(0, collection.snapshot.passage_count))
        running.task = asyncio.create_task(self._run(name, running), name=f"reindexing {name}", context=Context())
        running.task.add_done_callback(partial(self._ended, name))
        return running

    def _ended(self, name: str, task: asyncio.Task[IndexIdentity]) -> None:
        self._running.pop(name).report()
        if not task.cancelled() and (error := task.exception()):
            if isinstance(error, CollectionNotFound):
                log.info('collection "%s" was removed while it was reindexed', name)
            elif isinstance(error, QuintetError):
                log.error('collection "%s" could not be reindexed: %s', name, error.message)
            else:
                log.error('collection "%s" could not be reindexed', name, exc_info=error)

    def stop(self) -> None:
        """End all reindexing; observers hear of it."""
        self._stopping = True
        for running in self._running.values():
            running.task.cancel()

    async def close(self) -> None:
        self.stop()
        await asyncio.gather(*(each.task for each in self._running.values()), return_exceptions=True)

    # ------------------------------------------------------------ the work

    async def _run(self, name: str, running: Running) -> IndexIdentity:
        async with self._limit.take(math.inf):
            sample = await self._embed([name])
            collection = await self._collections.find(name)
            with Spool(name, collection.folder, sample.shape[1]) as spool:
                await self._embed_missing(collection.snapshot, spool, running)
                for _ in range(_ROUNDS):  # what was written meanwhile
                    collection = await self._collections.find(name)
                    if await self._embed_missing(collection.snapshot, spool) < _TOGETHER:
                        break
                async with self._collections.only_writer(name, math.inf):
                    collection = await self._collections.find(name)
                    make = partial(self._last_step, spool, asyncio.get_running_loop())
                    replace = partial(collection.replace, make, "reindex")
                    return (await self._collections.write_long(replace)).index

    async def _embed_missing(self, snapshot: Snapshot, spool: Spool, running: Running | None = None) -> int:
        """Embed the documents of a snapshot that the spool lacks; returns how many there were."""
        read, missing, done = self._collections.reading.run, 0, 0
        documents = iter(snapshot.content().documents)
        while batch := await read(lambda: list(islice(documents, _TOGETHER))):
            new = await read(partial(spool.missing, batch))
            passages = await read(partial(_split, new))
            texts = _texts(new, passages)
            vectors = await self._embed(texts) if texts else np.empty((0, spool.dimensions), np.float32)
            await read(partial(spool.add, new, passages, vectors))
            missing += len(new)
            if running:
                done += spool.passage_count(batch)
                running.report(ReindexProgress(done, max(done, snapshot.passage_count)))
        return missing

    def _last_step(self, spool: Spool, loop: asyncio.AbstractEventLoop, snapshot: Snapshot) -> Content:
        """All documents with their new vectors, on a thread, while no other process writes."""
        documents = iter(snapshot.content().documents)
        while batch := list(islice(documents, _TOGETHER)):
            new = spool.missing(batch)
            passages = _split(new)
            if texts := _texts(new, passages):
                embedding = asyncio.run_coroutine_threadsafe(self._embed(texts), loop)
                spool.add(new, passages, embedding.result(_EMBED_SECONDS + _PATIENCE_SECONDS))
            else:
                spool.add(new, passages, np.empty((0, spool.dimensions), np.float32))
        return spool.content(snapshot, self._embedder.description.identity)

    async def _embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts; waits while the embedder cannot answer."""
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return await self._embedder.embed(texts, deadline=time.monotonic() + _EMBED_SECONDS)
            except Unavailable as error:
                if time.monotonic() + error.retry_after > give_up:
                    raise
                await asyncio.sleep(error.retry_after)


def _split(documents: Sequence[Document]) -> list[list[tuple[int, int]]]:
    return [split(document.text) for document in documents]


def _texts(documents: Sequence[Document], passages: Sequence[Sequence[tuple[int, int]]]) -> list[str]:
    return [
        embedded_text(document.title, document.text[start:end])
        for document, spans in zip(documents, passages, strict=True)
        for start, end in spans
    ]
