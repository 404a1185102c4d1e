"""The collections of a folder with all that RagService does to them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from server.domain.access import Stored
from server.domain.concurrency_limiter import remaining
from server.domain.errors import CollectionNotFound, CollectionUnavailable, CollectionUnreadable, EmbedderMismatch
from server.domain.rag import (
    CollectionInfo,
    CollectionState,
    DocumentInfo,
    DocumentPage,
    GenerationInfo,
    IndexIdentity,
    Query,
    Retrieval,
)
from server.domain.texts import Embedder
from server.inference.reranker import OnnxReranker
from server.inference.scheduler import Scheduler
from server.models.handle import Handle
from server.tasks.rag.ingest import Ingester
from server.tasks.rag.quotas import StorageQuotas
from server.tasks.rag.reindex import Reindexer
from server.vectorstore.admin import drop_collection
from server.vectorstore.collection import Collection
from server.vectorstore.manager import CollectionManager
from server.vectorstore.search import documents_after, search
from server.vectorstore.snapshot import Snapshot

_PAGE_CODE_POINTS = 500_000  # of titles, URIs and metadata; clients read 4 MiB by default
_FAULTS_SHOWN = 5
# How many passages a reranker reads. Measured by `make eval` (nDCG@10): 0.591 without, 0.612 with 10, 0.602 with 20,
# 0.569 with 50; the further down it reads, the more often a passage that only sounds right comes first.
RERANKED = 10


class RagEngine:
    """Collections below `index`, bound to one embedder. Methods raise CollectionNotFound and CollectionBroken."""

    def __init__(
        self, index: Path, embedder: Embedder, scheduler: Scheduler, reranker: Handle[OnnxReranker] | None = None
    ) -> None:
        self.embedder = embedder.description.identity
        self._collections = CollectionManager(index, self.embedder)
        self.quotas = StorageQuotas(self._collections)
        self.ingester = Ingester(self._collections, embedder, self.quotas)
        self.reindexer = Reindexer(self._collections, embedder)
        self._embedder = embedder
        self._scheduler = scheduler
        self._reranker = reranker

    async def open(self) -> None:
        """Find and check all collections."""
        await self._collections.start()

    async def close(self) -> None:
        """Stop watching, folding and reindexing. What was acknowledged is on disk."""
        await self.reindexer.close()
        await self._collections.close()

    async def retrieve(self, query: Query, *, deadline: float) -> Retrieval:
        """The best `top_k` passages, fewer if the collection has fewer. With a reranker, its order holds for the first.

        Never waits for a write. Also raises GenerationNotReached and EmbedderMismatch.
        """
        collection = await self._collections.reached(query.collection, query.min_generation, deadline)
        vector = await self._embedder.embed([query.text], deadline=deadline)
        snapshot = collection.snapshot
        self._collections.check_embedder(snapshot)
        count = max(query.top_k, RERANKED) if self._reranker else query.top_k
        work = partial(search, snapshot, vector, count, query.filters)
        passages = await self._scheduler.run(work, deadline=deadline, name="search")
        if self._reranker:
            read, rest = passages[:RERANKED], passages[RERANKED:]
            async with self._reranker.use(deadline) as reranker:
                scores = await reranker.scores(query.text, [(p.title, p.text) for p in read], deadline=deadline)
            order = sorted(range(len(read)), key=scores.__getitem__, reverse=True)
            passages = (*(read[place] for place in order), *rest)[: query.top_k]
        return Retrieval(passages, snapshot.index, self.embedder)

    async def drop(self, name: str, *, deadline: float) -> IndexIdentity:
        """Remove a collection, a broken one too; return its last state."""
        async with self._collections.only_writer(name, deadline):
            try:
                last = (await self._collections.find(name)).snapshot.index
            except (CollectionUnavailable, CollectionUnreadable):
                last = IndexIdentity(name, 0)
            owner = self._collections.owners().get(name)
            try:
                await self._collections.write(partial(drop_collection, self._collections.index, name, owner), deadline)
            except CollectionNotFound:  # another process was faster
                self._collections.forget(name)
                raise
            self._collections.forget(name)
            return last

    async def rollback(self, name: str, generation: int, *, deadline: float) -> IndexIdentity:
        """Make a new generation with the content of a kept one. Raises GenerationNotFound."""
        async with self._collections.only_writer(name, deadline):
            collection = await self._collections.find(name)
            kept = await self._collections.reading.run(collection.kept_generations)
            with self.quotas.room(name, _growth(collection, kept, generation)):
                return (await self._collections.write(partial(collection.rollback, generation), deadline)).index

    async def compact(self, name: str, *, deadline: float) -> CollectionInfo:
        """Fold the log into a segment now. Writes go on meanwhile, and the fold goes on if the caller leaves."""
        remaining(deadline)
        collection = await self._collections.find(name)
        await self._collections.fold(collection)
        return self._info(collection)

    def owners(self) -> dict[str, str]:
        """The recorded owners of all collections, by name, empty where none is recorded."""
        return self._collections.owners()

    async def look_for(self, name: str) -> None:
        """Find a collection that another server has just made or changed."""
        await self._collections.refresh(name)

    def list_collections(self) -> list[CollectionInfo]:
        """All collections, sorted by name."""
        owners = self.owners()
        found = [self._info(each) for each in self._collections.open.values()]
        found += (
            CollectionInfo(IndexIdentity(name, 0), CollectionState.FAILED, "; ".join(why), owner=owners.get(name, ""))
            for name, why in self.faults().items()
            if name not in self._collections.open
        )
        return sorted(found, key=lambda info: info.index.collection)

    def faults(self) -> dict[str, list[str]]:
        """What is wrong with the files of each collection; nothing with most."""
        return self._collections.faults()

    async def describe(self, name: str, min_generation: int = 0, *, deadline: float) -> CollectionInfo:
        """What is served now, even if another embedder made it. Raises GenerationNotReached."""
        return self._info(await self._collections.reached(name, min_generation, deadline))

    async def list_documents(self, name: str, after: str, limit: int) -> DocumentPage:
        """Up to `limit` documents with ids after `after`, sorted by id; fewer if their metadata are long."""
        collection = await self._collections.find(name)
        return await self._collections.reading.run(partial(_page, collection.snapshot, after, limit))

    async def list_generations(self, name: str) -> tuple[IndexIdentity, list[GenerationInfo]]:
        """What is served now, and the generations that can be rolled back to, newest first."""
        collection = await self._collections.find(name)
        return collection.snapshot.index, await self._collections.reading.run(collection.kept_generations)

    def _info(self, collection: Collection) -> CollectionInfo:
        snapshot = collection.snapshot
        segment = snapshot.segment
        faults = self._collections.faults_of(collection)
        state = CollectionState.DEGRADED if faults else CollectionState.READY
        try:
            self._collections.check_embedder(snapshot)
        except EmbedderMismatch as error:
            state, faults = CollectionState.NEEDS_REINDEX, [*faults, error.message]
        message = "; ".join(faults[-_FAULTS_SHOWN:])
        return CollectionInfo(
            snapshot.index,
            state,
            message,
            document_count=snapshot.document_count,
            passage_count=snapshot.passage_count,
            dimensions=snapshot.dimensions,
            model=segment.info.model,
            size_bytes=collection.size_bytes,
            update_time=snapshot.updated,
            fault_count=collection.fault_count,
            log_count=snapshot.log_count,
            index_type=segment.ann.type if segment.ann else "flat",
            recall_at_10=segment.ann.recall_at_10 if segment.ann else 1.0,
            owner=collection.owner,
        )


def _growth(collection: Collection, kept: Sequence[GenerationInfo], generation: int) -> Stored:
    """What a rollback adds. An unknown generation adds nothing."""
    target = next((each for each in kept if each.generation == generation), None)
    if target is None:
        return Stored()
    documents = target.document_count - collection.snapshot.document_count
    return Stored(0, max(0, documents), max(0, target.size_bytes - collection.size_bytes))


def _page(snapshot: Snapshot, after: str, limit: int) -> DocumentPage:
    found: list[DocumentInfo] = []
    size = 0
    for each in documents_after(snapshot, after):
        if len(found) == limit or size > _PAGE_CODE_POINTS:
            return DocumentPage(tuple(found), complete=False, index=snapshot.index)
        found.append(DocumentInfo(each.id, each.title, each.uri, each.metadata, len(each.text)))
        size += sum(map(len, (each.title, each.uri, *each.metadata, *each.metadata.values())))
    return DocumentPage(tuple(found), complete=True, index=snapshot.index)
