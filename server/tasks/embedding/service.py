"""quintet.v1.EmbeddingService"""

from collections.abc import Mapping
from typing import Any

from quintet.v1 import embedding_pb2, embedding_pb2_grpc

from server.domain.context import current
from server.domain.texts import DetailedEmbedder
from server.models.handle import Handle, find
from server.rpc.access import uses_chosen
from server.rpc.convert import model_ref
from server.rpc.service_spec import FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role


class EmbeddingServicer(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Texts to vectors. The first of `embedders` serves requests that name none."""

    def __init__(self, embedders: Mapping[str, Handle[DetailedEmbedder]]) -> None:
        self._embedders = embedders
        self._default = next(iter(embedders))

    async def Embed(self, request: embedding_pb2.EmbedRequest, context: Any) -> embedding_pb2.EmbedResponse:
        deadline = current().deadline
        handle = find(self._embedders, request.model or self._default)
        async with handle.use(deadline) as embedder:
            found = await embedder.embed_detailed(request.texts, deadline=deadline)
            model = model_ref(embedder.description.identity)
        return embedding_pb2.EmbedResponse(
            embeddings=[
                embedding_pb2.Embedding(
                    values=each.vector.tolist(), truncated=each.truncated, unknown_share=each.unknown_share
                )
                for each in found
            ],
            dimensions=len(found[0].vector),
            model=model,
        )


def spec(embedders: Mapping[str, Handle[DetailedEmbedder]]) -> ServiceSpec:
    """The service over the embedders that callers can name, the default first."""
    methods = {"Embed": MethodSpec(Role.CALL, FREE, (uses_chosen(next(iter(embedders))),))}
    return ServiceSpec(EmbeddingServicer(embedders), methods, needs=tuple(embedders.values()))
