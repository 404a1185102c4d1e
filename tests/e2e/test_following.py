"""What follows the models: watchers, collections, health."""

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from quintet.v1 import model_pb2, rag_pb2

from tests.e2e.desk import Serve, States, reason
from tests.tiny_models import add_embedder


async def test_watchers_see_all_then_changes_then_the_end(published: Path, serve: Serve) -> None:
    async with serve() as desk:
        watch = desk.model_service.WatchModels(model_pb2.WatchModelsRequest())
        events = aiter(watch)
        snapshot = (await anext(events)).snapshot
        assert [model.ref.name for model in snapshot.models] == sorted(model.ref.name for model in snapshot.models)
        assert {"tiny", "other", "sentiment"} <= {model.ref.name for model in snapshot.models}
        await desk.unload()
        changed = (await anext(events)).changed
        assert (changed.ref.name, changed.state) == ("tiny", States.MODEL_STATE_UNLOADED)
        await desk.load()
        states: list[int] = []
        while not states or states[-1] != States.MODEL_STATE_READY:
            states.append((await anext(events)).changed.state)
        assert states[0] == States.MODEL_STATE_LOADING
        desk.hear(events)
    assert [event.WhichOneof("event") for event in desk.heard] == ["done"]


async def test_collections_follow_the_embedder(published: Path, serve: Serve) -> None:
    await asyncio.to_thread(add_embedder, published, "1")
    async with serve() as desk:

        async def retrieve() -> str:
            request = rag_pb2.RetrieveRequest(query="a good house", collection="notes", top_k=1)
            try:
                return (await desk.rag.Retrieve(request, timeout=20)).model.version
            except grpc.aio.AioRpcError as error:
                return str(reason(error))

        async def becomes(expected: str) -> None:
            async with asyncio.timeout(10):
                while await retrieve() != expected:  # noqa: ASYNC110  # the pointer is looked at now and then
                    await asyncio.sleep(0.05)

        documents = [rag_pb2.Document(id="1", text="the house is good")]
        await desk.rag.AddDocuments(rag_pb2.AddDocumentsRequest(collection="notes", documents=documents), timeout=20)
        assert await retrieve() == "1"
        await desk.unload("embedder")
        assert await retrieve() == "1", "it was loaded for this"
        await asyncio.to_thread(add_embedder, published, "2")
        await becomes("EMBEDDER_MISMATCH")
        await desk.model_service.SetAlias(
            model_pb2.SetAliasRequest(name="embedder", alias="current", target="previous"), timeout=20
        )
        await becomes("1")


async def test_collections_heal_when_the_embedder_is_published(published: Path, serve: Serve) -> None:
    async with serve() as desk:

        async def state() -> int:
            request = health_pb2.HealthCheckRequest(service="quintet.v1.RagService")
            return int((await desk.health.Check(request)).status)

        assert await state() == health_pb2.HealthCheckResponse.NOT_SERVING, "the embedder is missing"
        request = rag_pb2.RetrieveRequest(query="a good house", collection="notes")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.rag.Retrieve(request, timeout=20)
        assert reason(caught.value) == "MODEL_UNAVAILABLE"
        assert "make train ONLY=embedder" in (caught.value.details() or "")
        await asyncio.to_thread(add_embedder, published, "1")
        async with asyncio.timeout(10):
            while await state() != health_pb2.HealthCheckResponse.SERVING:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.05)
        documents = [rag_pb2.Document(id="1", text="the house is good")]
        await desk.rag.AddDocuments(rag_pb2.AddDocumentsRequest(collection="notes", documents=documents), timeout=20)
        assert (await desk.rag.Retrieve(request, timeout=20)).model.version == "1"


async def test_health_follows(published: Path, serve: Serve) -> None:
    async with serve() as desk:

        async def state() -> int:
            request = health_pb2.HealthCheckRequest(service="quintet.v1.PricingService")
            return int((await desk.health.Check(request)).status)

        assert await state() == health_pb2.HealthCheckResponse.NOT_SERVING, "there is no such artefact here"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.load("house-prices")
        assert reason(caught.value) == "MODEL_UNAVAILABLE"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.load("nothing")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
