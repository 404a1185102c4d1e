"""Retries, deadlines, cancelled streams."""

import asyncio
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from quintet_client import AsyncQuintetClient, QuintetClient, errors

from tests.clients.recorder import Failure
from tests.clients.small_server import SmallServer
from tests.clients.test_client import CALLS, finish, finish_async

LOADING = Failure(grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING", "loading", retry_after=0.02)
TRIED_ONCE = {
    *("chat", "stream_chat", "ask", "stream_ask"),
    *("create_collection", "delete_collection", "rollback", "reindex", "import_documents"),
}
RETRIED = [call for call in CALLS if call[0] not in TRIED_ONCE]
ONCE = [call for call in CALLS if call not in RETRIED]


@pytest.mark.parametrize(("name", "arguments", "method", "_"), RETRIED, ids=[call[0] for call in RETRIED])
async def test_unavailable_is_retried(
    server: SmallServer, name: str, arguments: tuple[Any, ...], method: str, _: float
) -> None:
    server.rag.collections["notes"] = {}
    server.recorder.failures[method].extend([LOADING] * 3)
    with QuintetClient(server.address) as client:
        finish(getattr(client, name)(*arguments))
    assert server.recorder.methods().count(method) == 4
    assert len({call.metadata["x-request-id"] for call in server.recorder.seen}) == 1, "attempts of one request"
    server.recorder.failures[method].extend([LOADING] * 4)
    async with AsyncQuintetClient(server.address) as async_client:
        with pytest.raises(errors.ModelLoading) as raised:
            await finish_async(getattr(async_client, name)(*arguments))
    assert raised.value.retry_after == 0.02
    assert server.recorder.methods().count(method) == 8


@pytest.mark.parametrize(("name", "arguments", "method", "_"), ONCE, ids=[call[0] for call in ONCE])
def test_costly_or_non_idempotent_calls_are_not_retried(
    server: SmallServer, name: str, arguments: tuple[Any, ...], method: str, _: float
) -> None:
    server.recorder.failures[method].append(LOADING)
    with QuintetClient(server.address) as client, pytest.raises(errors.ModelLoading):
        finish(getattr(client, name)(*arguments))
    assert server.recorder.methods() == [method]


def test_other_failures_are_not_retried(server: SmallServer) -> None:
    server.recorder.failures["Classify"].append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_OVERLOADED"))
    with QuintetClient(server.address) as client, pytest.raises(errors.ServerOverloaded):
        client.classify("hello")
    assert server.recorder.methods() == ["Classify"]


def test_large_writes_are_retried_too(server: SmallServer) -> None:
    documents = [{"id": str(number), "text": "x" * 20_000} for number in range(128)]  # 2.5 MB
    server.recorder.failures["AddDocuments"].append(LOADING)
    with QuintetClient(server.address) as client:
        assert client.add_documents("notes", documents).added_count == 128
    assert server.recorder.methods() == ["AddDocuments"] * 2


def test_the_timeout_of_a_call_overrides_the_clients(server: SmallServer) -> None:
    with QuintetClient(server.address, timeout=50) as client:
        client.classify("hello")
        client.classify("hello", timeout=5)
        client.chat("hello")
    assert [call.seconds for call in server.recorder.seen] == pytest.approx([50, 5, 50], abs=2)


async def test_a_deadline_that_passes(server: SmallServer) -> None:
    with QuintetClient(server.address) as client, pytest.raises(errors.DeadlineExceeded) as raised:
        list(client.stream_chat("wait", timeout=0.3))
    assert raised.value.request_id == server.recorder.seen[0].metadata["x-request-id"]
    async with AsyncQuintetClient(server.address) as async_client:
        with pytest.raises(errors.DeadlineExceeded):
            await finish_async(async_client.stream_chat("wait", timeout=0.3))


def test_leaving_a_stream_stops_the_server(server: SmallServer) -> None:
    with QuintetClient(server.address) as client:
        for event in client.stream_chat("wait for me"):
            assert event.delta.text == "You "
            break
        assert server.recorder.ended.wait(5)


async def test_closing_an_async_stream_stops_the_server(server: SmallServer) -> None:
    async with AsyncQuintetClient(server.address) as client:
        async with aclosing(client.stream_chat("wait for me")) as events:
            assert (await anext(events)).delta.text == "You "
        assert await asyncio.to_thread(server.recorder.ended.wait, 5)


async def test_cancelling_a_task_stops_the_server(server: SmallServer) -> None:
    async with AsyncQuintetClient(server.address) as client:
        started = asyncio.Event()

        async def consume() -> None:
            async for _ in client.stream_chat("wait for me"):
                started.set()

        task = asyncio.create_task(consume())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.recorder.ended.wait, 5)


def test_an_error_in_the_middle_of_a_stream(server: SmallServer) -> None:
    server.recorder.failures["StreamChat:delta"].append(Failure(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_FAILED"))
    with QuintetClient(server.address) as client:
        events = client.stream_chat("hello there")
        assert next(events).delta.text == "You "
        with pytest.raises(errors.UpstreamFailed):
            list(events)
