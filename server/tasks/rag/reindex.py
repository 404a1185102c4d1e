"""Embedding a collection again, for instance after another embedder was installed."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from itertools import islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from server.domain.rag import IndexIdentity, ReindexProgress
from server.domain.texts import Embedder
from server.tasks.rag.changes import compare
from server.vectorstore.collection import Collection
from server.vectorstore.layout import full_disk_as_error
from server.vectorstore.segment import Content
from server.vectorstore.threads import run_to_end

_BATCH = 64  # documents whose passages are embedded between two reports of progress


async def reindexed(
    collection: Collection, embedder: Embedder, *, deadline: float
) -> AsyncGenerator[ReindexProgress | IndexIdentity, None]:
    """Embed every document, and make that the next generation: progress, then the new generation.

    Vectors are kept in an unnamed temporary file, so that memory does not grow with the collection.
    """
    before = collection.snapshot
    documents = iter(before.content().documents)
    passages: list[NDArray[np.int32]] = [np.empty((0, 3), np.int32)]
    count = done = 0
    with tempfile.TemporaryFile(dir=collection.folder) as spool:
        sample = await embedder.embed([collection.name], deadline=deadline)
        yield ReindexProgress(0, before.passage_count)
        while batch := await asyncio.to_thread(lambda: list(islice(documents, _BATCH))):
            changes = await asyncio.to_thread(compare, lambda _: None, batch)
            vectors = await embedder.embed(changes.texts, deadline=deadline) if changes.texts else sample[:0]
            with full_disk_as_error(collection.name):
                await asyncio.to_thread(spool.write, np.ascontiguousarray(vectors).data)
            passages.append(changes.passages + np.array([count, 0, 0], np.int32))
            count, done = count + len(batch), done + len(vectors)
            yield ReindexProgress(done, max(done, before.passage_count))
        identity, dimensions = embedder.description.identity, sample.shape[1]
        rows = _rows(spool, dimensions)
        content = Content(identity, dimensions, before.content().documents, np.concatenate(passages), rows)
        # It runs to its end even if the caller is cancelled: `spool` must stay open for it.
        snapshot = await run_to_end(partial(collection.replace, content, before, "reindex"))
        yield IndexIdentity(collection.name, snapshot.generation)


def _rows(spool: BinaryIO, dimensions: int) -> Iterator[NDArray[np.float32]]:
    spool.flush()
    spool.seek(0)
    while part := spool.read(4096 * dimensions * 4):
        yield np.frombuffer(part, np.float32).reshape(-1, dimensions)
