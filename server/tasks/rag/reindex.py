"""Embedding a collection again."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterator
from itertools import islice
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from server.domain.rag import ReindexProgress
from server.domain.texts import Embedder
from server.tasks.rag.changes import compare
from server.vectorstore.collection import Collection
from server.vectorstore.layout import full_disk_told
from server.vectorstore.segment import Content, EmbedderRecord, Parts
from server.vectorstore.snapshot import Snapshot

_DOCUMENTS = 64  # whose passages are embedded between two reports


async def reindexed(
    collection: Collection, before: Snapshot, embedder: Embedder, record: EmbedderRecord, deadline: float
) -> AsyncGenerator[ReindexProgress | Snapshot, None]:
    """Embed every document, and make that the next generation: progress, then the new snapshot.

    Vectors wait in a file without a name, so that memory does not grow with the collection.
    """
    documents = iter(before.content().documents)
    passages: list[NDArray[np.int32]] = []
    count = done = 0
    with tempfile.TemporaryFile(dir=collection.home) as spool:
        [sample] = await embedder.embed([collection.name], deadline=deadline)
        yield ReindexProgress(0, before.passage_count)
        while batch := await asyncio.to_thread(lambda: list(islice(documents, _DOCUMENTS))):
            cut = await asyncio.to_thread(compare, lambda _: None, batch)
            vectors = await embedder.embed(cut.texts, deadline=deadline) if cut.texts else sample[None][:0]
            with full_disk_told(collection.name):
                await asyncio.to_thread(spool.write, np.ascontiguousarray(vectors).data)
            passages.append(cut.passages + np.array([count, 0, 0], np.int32))
            count, done = count + len(batch), done + len(vectors)
            yield ReindexProgress(done, max(done, before.passage_count))
        content = Content(
            record,
            before.content().documents,
            np.concatenate([np.empty((0, 3), np.int32), *passages]),
            Parts((done, len(sample)), _rows(spool, len(sample))),
        )
        # Begun, it goes on to its end: `spool` must not be closed before.
        installing = asyncio.create_task(asyncio.to_thread(collection.replace, content, before, "reindex"))
        try:
            yield await asyncio.shield(installing)
        finally:
            await asyncio.wait({installing})


def _rows(spool: BinaryIO, dimensions: int) -> Iterator[NDArray[np.float32]]:
    spool.flush()
    spool.seek(0)
    while part := spool.read(4096 * dimensions * 4):
        yield np.frombuffer(part, np.float32).reshape(-1, dimensions)
