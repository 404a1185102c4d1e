"""The collections and answers that are made of models. Their libraries are imported when the models are there."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.domain.chat import ChatModel
from server.domain.errors import ModelLoading
from server.domain.texts import Embedder
from server.inference.scheduler import Scheduler
from server.models.handle import Handle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from server.inference.reranker import OnnxReranker
    from server.tasks.rag.answerer import Answerer
    from server.tasks.rag.engine import RagEngine


async def open_collections(
    index: Path,
    scheduler: Scheduler,
    embedder: Handle[Embedder],
    reranker: "Handle[OnnxReranker] | None",
    loaded: Embedder,
) -> "RagEngine":
    """Open the collections in the folder `index` with the embedder that is loaded."""
    from server.tasks.rag.engine import RagEngine

    engine = RagEngine(index, SameEmbedder(embedder, loaded), scheduler, reranker)
    await engine.open()
    return engine


def faults(collections: "Handle[RagEngine]") -> dict[str, list[str]]:
    """What is wrong with the files of each collection; nothing with most. Collections that are not open have no row."""
    engine = collections.loaded
    return engine.faults() if engine else {}


def warnings(collections: "Handle[RagEngine]") -> list[str]:
    """The same, for an operator."""
    return [f'collection "{name}": {why}' for name, found in faults(collections).items() for why in found]


def end_reindexing(collections: "Handle[RagEngine]") -> None:
    """End all reindexing: the server stops."""
    if engine := collections.loaded:
        engine.reindexer.stop()


async def make_answerer(collections: "RagEngine", chat: ChatModel) -> "Answerer":
    from server.tasks.rag.answerer import Answerer

    return Answerer(collections, chat)


class SameEmbedder:
    """The embedder that a handle has now, as long as it is the one with which the collections were opened."""

    def __init__(self, handle: Handle[Embedder], loaded: Embedder) -> None:
        self.description = loaded.description
        self._handle = handle

    async def embed(self, texts: Sequence[str], *, deadline: float) -> "NDArray[np.float32]":
        """As Embedder.embed. Raises ModelLoading if it was replaced and the collections are not yet opened again."""
        async with self._handle.use(deadline) as engine:
            if engine.description.identity != self.description.identity:
                raise ModelLoading(f'model "{self._handle.name}" was replaced; the collections are being opened again')
            return await engine.embed(texts, deadline=deadline)
