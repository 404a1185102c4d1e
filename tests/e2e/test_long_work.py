"""Long work on collections through a real channel: it outlives its stream, and ends with the server."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from quintet.v1 import rag_pb2 as pb

from server.tasks.rag.models import SameEmbedder
from tests.e2e.desk import Desk, Serve, reason
from tests.tiny_models import add_embedder

SECONDS = 20.0


@pytest.fixture
def slowed(published: Path, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """While it is set, embedding takes a tenth of a second longer."""
    add_embedder(published, "1")
    slow = asyncio.Event()
    embed = SameEmbedder.embed

    async def slower(self: SameEmbedder, texts: Sequence[str], *, deadline: float) -> Any:
        if slow.is_set():
            await asyncio.sleep(0.1)
        return await embed(self, texts, deadline=deadline)

    monkeypatch.setattr(SameEmbedder, "embed", slower)
    return slow


async def begin(desk: Desk, slowed: asyncio.Event) -> tuple[Any, Any]:
    """Add 640 documents and begin to reindex them; returns the call, and its events after the first."""
    for start in range(0, 640, 128):
        documents = [pb.Document(id=str(number), text=f"a good house {number}") for number in range(start, start + 128)]
        request = pb.AddDocumentsRequest(collection="notes", documents=documents)
        await desk.rag.AddDocuments(request, timeout=SECONDS)
    slowed.set()
    call = desk.rag.Reindex(pb.ReindexRequest(collection="notes"), timeout=SECONDS)
    events = aiter(call)
    first = await anext(events)
    assert first.progress.total == 640
    return call, events


async def end_of(events: Any) -> None:
    async for _ in events:
        pass


async def test_it_outlives_its_stream(slowed: asyncio.Event, serve: Serve) -> None:
    async with serve() as desk:
        call, _ = await begin(desk, slowed)
        call.cancel()
        joined = desk.rag.Reindex(pb.ReindexRequest(collection="notes"), timeout=SECONDS)
        async for event in joined:
            if event.progress.done:
                break
        joined.cancel()
        slowed.clear()
        index = await desk.rag.GetIndex(pb.GetIndexRequest(collection="notes", min_generation=6), timeout=SECONDS)
        assert index.index.generation == 6, "one reindexing after five writes"
        listed = await desk.rag.ListGenerations(pb.ListGenerationsRequest(collection="notes"), timeout=SECONDS)
        assert [each.origin for each in listed.generations] == ["reindex", "create"]


async def test_it_ends_with_the_server(slowed: asyncio.Event, serve: Serve) -> None:
    async with asyncio.timeout(10):
        async with serve(shutdown_grace_seconds=8.0) as desk:
            _, events = await begin(desk, slowed)
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 5
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await end_of(events)
        assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        slowed.clear()
        async with serve() as desk:  # nothing is left of it
            *_, last = [e async for e in desk.rag.Reindex(pb.ReindexRequest(collection="notes"), timeout=SECONDS)]
            assert last.done.index.generation == 6
