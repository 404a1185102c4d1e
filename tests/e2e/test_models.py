"""Models that come, go and are replaced while they are served: a real server, a real channel, small real models."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from quintet.v1 import classification_pb2, classification_pb2_grpc, model_pb2, model_pb2_grpc, rag_pb2, rag_pb2_grpc

from server.app import running
from server.settings import Settings
from tests.e2e.test_bad_input import details
from tests.tiny_models import TEXTS, add, add_embedder

MIB = 2**20
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


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def start(*, tiny: dict[str, Any] | None = None, **changes: Any) -> AsyncIterator[Desk]:
        settings = Settings(
            port=0,
            data=tmp_path,
            llm="off",
            shutdown_pause_seconds=0,
            models={"tiny": tiny or {}, "other": {"preload": False}},
            **changes,
        )
        async with AsyncExitStack() as channels:  # they outlive the server, so that its last words are heard
            async with running(settings) as app:
                channel = await channels.enter_async_context(grpc.aio.insecure_channel(app.address))
                await app.loaded()
                desk = Desk(channel, tmp_path / "models")
                yield desk
            if desk.hearing:
                await desk.hearing

    (tmp_path / "models").mkdir()
    return start


@pytest.fixture
def published(tmp_path: Path, serve: Serve) -> Path:
    """Version 1 of both models."""
    models = tmp_path / "models"
    add(models, "1")
    add(models, "1", name="other")
    return models


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


async def test_an_unloaded_model_is_loaded_once_for_all_who_ask(published: Path, serve: Serve) -> None:
    async with serve() as desk:
        assert (await desk.get()).state == States.MODEL_STATE_READY
        before = await desk.unload()
        assert (before.state, before.memory_bytes) == (States.MODEL_STATE_UNLOADED, 0)
        answers = await asyncio.gather(*(desk.classify() for _ in range(20)))
        assert {answer.model.version for answer in answers} == {"1"}
        after = await desk.get()
        assert (after.state, after.load_count) == (States.MODEL_STATE_READY, before.load_count + 1)
        assert (await desk.load()).load_count == after.load_count, "it is there already"
        assert (published / "tiny" / "1.use.json").is_file()


async def test_aliases_flip_and_roll_back(published: Path, serve: Serve) -> None:
    async with serve() as desk:
        first = await desk.classify()
        await published_aside(published, "2", alias="candidate")
        assert (await desk.get()).aliases == {"current": "1", "candidate": "2"}
        flipped = await desk.alias("candidate")
        assert (flipped.ref.version, flipped.aliases["previous"]) == ("2", "1")
        second = await desk.classify()
        assert second.model.version == "2"
        assert second.results[0].labels[0].score != first.results[0].labels[0].score
        await desk.alias("previous")
        assert (await desk.classify()) == first
        await desk.alias("2", alias="candidate")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.alias("7")
        assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.NOT_FOUND, "MODEL_VERSION_NOT_FOUND")


async def test_other_golden_outputs_refuse_the_flip_unless_forced(published: Path, serve: Serve) -> None:
    await published_aside(published, "2", alias="candidate", wrong_by=0.02)
    async with serve() as desk:
        for is_loaded in (True, False):
            if not is_loaded:
                await desk.unload()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await desk.alias("candidate")
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert reason(caught.value) == "MODEL_CHECK_FAILED"
            assert "0.02 off, 0.001 is allowed" in str(caught.value.details())
            assert (published / "tiny" / "current").read_text() == "1\n"
            assert await desk.version() == "1"
        kept = await desk.get()
        assert kept.failed_load_count == 2
        forced = await desk.alias("candidate", force=True)
        assert (forced.ref.version, forced.state) == ("2", States.MODEL_STATE_READY)
        assert "gives another output" in forced.state_message


async def test_a_pointer_moved_by_another_process_is_followed(published: Path, serve: Serve) -> None:
    async with serve() as desk:
        await published_aside(published, "2")
        await desk.serves("2")
        (published / "tiny" / "current").write_text("1")  # by hand
        await desk.serves("1")


async def test_a_damaged_version_replaces_nothing(published: Path, serve: Serve) -> None:
    async with serve() as desk:
        damage(await published_aside(published, "2", alias="candidate"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.alias("candidate")
        assert reason(caught.value) == "MODEL_UNAVAILABLE"
        assert "model.onnx does not match its SHA-256" in str(caught.value.details())
        damage(published / "tiny" / "1")
        with pytest.raises(grpc.aio.AioRpcError):
            await desk.reload()
        kept = await desk.get()
        assert (kept.state, kept.failed_load_count) == (States.MODEL_STATE_READY, 2)
        assert "another version was not loaded" in kept.state_message
        assert await desk.version() == "1", "what is in memory is whole"


async def test_the_last_good_version_stands_in_for_a_damaged_one(published: Path, serve: Serve) -> None:
    damage(await published_aside(published, "2"))
    async with serve() as desk:
        found = await desk.get()
        assert (found.ref.version, found.state) == ("1", States.MODEL_STATE_READY)
        assert "does not match its SHA-256" in found.state_message
        assert "version 1 is served, the last good one" in found.state_message
        await published_aside(published, "3")
        await desk.serves("3")
        assert (await desk.get()).state_message == ""


async def test_a_failed_model_comes_back_when_it_is_published(serve: Serve, tmp_path: Path) -> None:
    models = tmp_path / "models"
    async with serve() as desk:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.classify()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (await desk.get()).state == States.MODEL_STATE_FAILED
        await published_aside(models, "1")
        async with asyncio.timeout(10):
            while (await desk.get()).state != States.MODEL_STATE_READY:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.05)
        assert await desk.version() == "1"


def pretend_use(models: Path, name: str, size: int) -> None:
    """As if loading it had once taken so much; what is measured later is less, and the largest counts."""
    use = {"resident_bytes": size, "peak_bytes": size, "seconds": 0.1}
    (models / name / "1.use.json").write_text(json.dumps({"recommended": use}))


async def test_the_budget_evicts_who_was_used_longest_ago(published: Path, serve: Serve) -> None:
    for name in ("tiny", "other"):
        pretend_use(published, name, 100 * MIB)
    async with serve(memory_budget=150 * MIB) as desk:
        assert await desk.version() == "1"
        assert await desk.version("other") == "1"
        assert (await desk.get()).state == States.MODEL_STATE_UNLOADED
        assert (await desk.get("other")).memory_bytes == 100 * MIB
        assert await desk.version() == "1"
        assert (await desk.get("other")).state == States.MODEL_STATE_UNLOADED


async def test_what_cannot_fit_is_refused_with_the_numbers(published: Path, serve: Serve) -> None:
    for name in ("tiny", "other"):
        pretend_use(published, name, 100 * MIB)
    async with serve(memory_budget=150 * MIB, tiny={"pinned": True}) as desk:
        assert (await desk.get()).pinned
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await desk.classify("other")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info = details(caught.value)["ErrorInfo"]
        assert info.reason == "MODEL_DOES_NOT_FIT"
        numbers = {key: int(info.metadata[key]) for key in ("needed", "budget", "in_use")}
        assert numbers == {"needed": 100 * MIB, "budget": 150 * MIB, "in_use": 100 * MIB}
        assert await desk.version() == "1"


async def test_nobody_notices_a_swap(published: Path, serve: Serve) -> None:
    await published_aside(published, "2", alias="candidate")
    async with serve() as desk:
        wanted = {"1": (await desk.classify()).results}
        await desk.alias("2")
        wanted["2"] = (await desk.classify()).results
        done = asyncio.Event()
        seen: set[str] = set()

        async def read() -> None:
            while not done.is_set():
                answer = await desk.classify()
                assert answer.results == wanted[answer.model.version]
                seen.add(answer.model.version)

        readers = [asyncio.create_task(read()) for _ in range(4)]
        for target in ("1", "2") * 4:
            await desk.alias(target)
        done.set()
        await asyncio.gather(*readers)
        assert seen == {"1", "2"}


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
