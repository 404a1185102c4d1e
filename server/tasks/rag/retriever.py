"""Finding passages. A search reads the snapshot that was served when it began, so it never waits for a write."""

from functools import partial

from server.domain.rag import Query, Retrieval
from server.domain.texts import Embedder
from server.inference.reranker import OnnxReranker
from server.inference.scheduler import Scheduler
from server.models.handle import Handle
from server.vectorstore.manager import CollectionManager
from server.vectorstore.search import search

# How many passages a reranker reads. Measured by `make eval` (nDCG@10): 0.591 without, 0.612 with 10, 0.602 with 20,
# 0.569 with 50; the further down it reads, the more often a passage that only sounds right comes first.
RERANKED = 10


class Retriever:
    """Searches collections. With a reranker, its order holds for the first RERANKED passages; scores stay cosines."""

    def __init__(
        self,
        collections: CollectionManager,
        embedder: Embedder,
        scheduler: Scheduler,
        reranker: Handle[OnnxReranker] | None = None,
    ) -> None:
        self._collections = collections
        self._embedder = embedder
        self._scheduler = scheduler
        self._reranker = reranker

    async def retrieve(self, query: Query, *, deadline: float) -> Retrieval:
        """The best `top_k` passages, fewer if the collection has fewer.

        Raises CollectionNotFound, CollectionBroken, GenerationNotReached and EmbedderMismatch.
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
        return Retrieval(passages, snapshot.index, self._embedder.description.identity)
