"""A server with small real models, and what the tests of replacing them share."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from quintet.v1 import classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc, rag_pb2_grpc

from tests.e2e.test_bad_input import details
from tests.tiny_models import TEXTS, add

States = model_pb2.ModelState


class Desk:
    """A server with the models "tiny" and "other", and its stubs."""

    def __init__(self, channel: grpc.aio.Channel, models: Path) -> None:
        self.models = models
        self.model_service = model_pb2_grpc.ModelServiceStub(channel)
        self.rag = rag_pb2_grpc.RagServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.heard: list[model_pb2.WatchModelsResponse] = []  # until the server has stopped
        self.hearing: asyncio.Task[None] | None = None
        self._classification = classification_pb2_grpc.ClassificationServiceStub(channel)

    async def classify(self, name: str = "tiny") -> classification_pb2.ClassifyResponse:
        request = classification_pb2.ClassifyRequest(texts=TEXTS, model=name)
        return await self._classification.Classify(request, timeout=20)

    def hear(self, watch: AsyncIterator[model_pb2.WatchModelsResponse]) -> None:
        """Keep what a watch says until it ends."""

        async def listen() -> None:
            self.heard += [event async for event in watch]

        self.hearing = asyncio.create_task(listen())

    async def version(self, name: str = "tiny") -> str:
        return (await self.classify(name)).model.version

    async def get(self, name: str = "tiny") -> model_pb2.Model:
        return (await self.model_service.GetModel(model_pb2.GetModelRequest(name=name))).model

    async def alias(self, target: str, *, alias: str = "current", force: bool = False) -> model_pb2.Model:
        request = model_pb2.SetAliasRequest(name="tiny", alias=alias, target=target, force=force)
        return (await self.model_service.SetAlias(request, timeout=20)).model

    async def load(self, name: str = "tiny") -> model_pb2.Model:
        return (await self.model_service.LoadModel(model_pb2.LoadModelRequest(name=name), timeout=20)).model

    async def unload(self, name: str = "tiny") -> model_pb2.Model:
        return (await self.model_service.UnloadModel(model_pb2.UnloadModelRequest(name=name), timeout=20)).model

    async def reload(self, name: str = "tiny") -> model_pb2.Model:
        return (await self.model_service.ReloadModel(model_pb2.ReloadModelRequest(name=name), timeout=20)).model

    async def serves(self, version: str) -> None:
        async with asyncio.timeout(10):
            while await self.version() != version:  # noqa: ASYNC110  # another process is waited for
                await asyncio.sleep(0.05)


Serve = Callable[..., AbstractAsyncContextManager[Desk]]


async def published_aside(*arguments: Any, **options: Any) -> Path:
    return await asyncio.to_thread(add, *arguments, **options)


def reason(error: grpc.aio.AioRpcError) -> Any:
    return details(error)["ErrorInfo"].reason


def damage(folder: Path) -> None:
    graph = folder / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.unlink()
    graph.write_bytes(content)
