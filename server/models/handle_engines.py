"""Models that may come and go, for those who keep one: collections are bound to an embedder's identity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from server.domain.errors import ModelLoading
from server.domain.models import ModelDescription
from server.domain.texts import Embedder, Reranker
from server.models.handle import Handle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class HandleEmbedder:
    """An Embedder that takes what is in the slot on every call, as long as that is the model it describes."""

    def __init__(self, slot: Handle[Embedder], description: ModelDescription) -> None:
        self.description = description
        self._slot = slot

    async def embed(self, texts: Sequence[str], *, deadline: float) -> "NDArray[np.float32]":
        """As Embedder.embed. Raises ModelLoading while the collections do not know yet that it was replaced."""
        async with self._slot.use(deadline) as engine:
            if engine.description.identity != self.description.identity:
                raise ModelLoading(f'model "{self._slot.name}" was replaced; the collections are being opened again')
            return await engine.embed(texts, deadline=deadline)


class HandleReranker:
    """Takes what is in the slot on every call."""

    def __init__(self, slot: Handle[Reranker]) -> None:
        self._slot = slot

    async def scores(self, query: str, passages: Sequence[tuple[str, str]], *, deadline: float) -> list[float]:
        """As Reranker.scores."""
        async with self._slot.use(deadline) as engine:
            return await engine.scores(query, passages, deadline=deadline)
