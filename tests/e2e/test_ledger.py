"""The ledger of a real server whose provider is a scripted one: every call has a row, however it or the server ends."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from quintet.v1 import chat_pb2, chat_pb2_grpc, usage_pb2, usage_pb2_grpc

from server.domain.usage import Entry, Outcome, Selection, UsageSource
from server.usage.reader import SqlReader
from tests.conftest import ServerProcess, start_server, wait_ready
from tests.e2e.tasks import conversation
from tests.e2e.test_bad_input import details
from tests.fakes import OpenAIServer, Reply
from tests.waiting import until

STORY = Reply(deltas=["word "] * 2000, pause=0.02)


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer().running() as server:
        yield server


class Desk:
    """Starts servers on one data folder, and reads their ledger."""

    def __init__(self, folder: Path, upstream: OpenAIServer, stack: ExitStack) -> None:
        self._folder = folder
        self._upstream = upstream
        self._stack = stack

    async def start(self, **settings: str) -> tuple[ServerProcess, grpc.aio.Channel]:
        settings = {
            "llm_base_url": self._upstream.base_url,
            "llm_model": "gpt",
            "llm_api_key": self._upstream.api_key,
            **settings,
        }
        server = await asyncio.to_thread(start_server, self._folder, self._folder / "log.txt", **settings)
        self._stack.callback(server.process.wait)
        self._stack.callback(server.process.kill)
        await asyncio.to_thread(wait_ready, server.address, "quintet.v1.ChatService")
        return server, grpc.aio.insecure_channel(server.address)

    async def rows(self) -> list[Entry]:
        return await SqlReader(self._folder / "state" / "ledger.sqlite").entries(Selection(), before="", limit=1000)

    async def outcomes(self) -> Counter[Outcome]:
        return Counter(row.outcome for row in await self.rows())

    async def until(self, outcome: Outcome, number: int, seconds: float = 30.0) -> None:
        async with asyncio.timeout(seconds):
            while (await self.outcomes())[outcome] != number:  # noqa: ASYNC110  # another process writes
                await asyncio.sleep(0.1)


@pytest.fixture
def desk(tmp_path: Path, upstream: OpenAIServer) -> Iterator[Desk]:
    (tmp_path / "models").mkdir()
    with ExitStack() as stack:
        yield Desk(tmp_path, upstream, stack)


def request(text: str = "hello") -> chat_pb2.StreamChatRequest:
    return chat_pb2.StreamChatRequest(messages=conversation(text), max_output_tokens=500)


async def test_calls_and_what_usage_service_says_of_them(desk: Desk, upstream: OpenAIServer) -> None:
    _, channel = await desk.start()
    chat, usage = chat_pb2_grpc.ChatServiceStub(channel), usage_pb2_grpc.UsageServiceStub(channel)
    failing = [Reply(status=500)] * 3  # it is tried three times
    upstream.replies = [Reply(), Reply(), *failing, Reply(usage={"prompt_tokens": -1, "completion_tokens": 3})]
    unary = chat_pb2.ChatRequest(messages=conversation("hello"), max_output_tokens=500)
    answer = await chat.Chat(unary, timeout=20)
    assert [event async for event in chat.StreamChat(request(), timeout=20)][-1].done.usage == answer.usage
    with pytest.raises(grpc.aio.AioRpcError):
        await chat.Chat(unary, timeout=20)
    await chat.Chat(unary, timeout=20)
    listed = await usage.ListUsage(usage_pb2.ListUsageRequest(page_size=3))
    last = await usage.ListUsage(usage_pb2.ListUsageRequest(page_size=3, page_token=listed.next_page_token))
    records = [*listed.records, *last.records]
    assert last.next_page_token == ""
    names = usage_pb2.UsageOutcome.Name
    assert [(each.method, names(each.outcome)) for each in records] == [
        ("Chat", "USAGE_OUTCOME_OK"),
        ("Chat", "USAGE_OUTCOME_FAILED"),
        ("StreamChat", "USAGE_OUTCOME_OK"),
        ("Chat", "USAGE_OUTCOME_OK"),
    ]
    assert [int(each.usage.source) for each in records] == [
        UsageSource.ESTIMATED,
        UsageSource.ESTIMATED,
        *[UsageSource.PROVIDER] * 2,
    ]
    assert [each.usage.total_tokens for each in records][1:] == [0, 14, 14]
    assert {(each.tenant, each.service, each.model.name) for each in records} == {("local", "ChatService", "gpt")}
    (added,) = (await usage.GetUsage(usage_pb2.GetUsageRequest())).sums
    assert (added.call_count, added.estimated_count) == (4, 2)
    assert added.prompt_tokens == sum(each.usage.prompt_tokens for each in records)


async def test_watching_usage_ends_with_the_server(desk: Desk, upstream: OpenAIServer) -> None:
    server, channel = await desk.start()
    chat = chat_pb2_grpc.ChatServiceStub(channel)
    watch = usage_pb2_grpc.UsageServiceStub(channel).WatchUsage(usage_pb2.WatchUsageRequest(), timeout=60)
    first: asyncio.Future[Any] = asyncio.ensure_future(watch.read())
    unary = chat_pb2.ChatRequest(messages=conversation("hello"), max_output_tokens=500)
    while not first.done():  # it gets calls that end after it began
        await chat.Chat(unary, timeout=20)
    event = first.result()
    assert (event.settled.usage.total_tokens, event.settled.method, event.missed_count) == (14, "Chat", 0)
    server.process.terminate()
    last: Any = event
    while (more := await watch.read()) is not grpc.aio.EOF:
        last = more
    assert last.HasField("done")
    assert await asyncio.to_thread(server.process.wait, 30) == 0


async def test_a_request_id_that_comes_again(desk: Desk, upstream: OpenAIServer) -> None:
    _, channel = await desk.start()
    chat = chat_pb2_grpc.ChatServiceStub(channel)
    upstream.replies = [Reply(), Reply(usage={"prompt_tokens": 99, "completion_tokens": 99})]
    unary = chat_pb2.ChatRequest(messages=conversation("hello"), max_output_tokens=500)
    first = await chat.Chat(unary, metadata=(("x-request-id", "mine"),), timeout=20)
    again = await chat.Chat(unary, metadata=(("x-request-id", "mine"),), timeout=20)
    assert first.usage == again.usage
    unary.max_output_tokens = 499
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat.Chat(unary, metadata=(("x-request-id", "mine"),), timeout=20)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(caught.value)["ErrorInfo"].reason == "REQUEST_ID_REUSED"
    newest, oldest = await desk.rows()
    assert (bool(newest.repeat_of), newest.usage.total_tokens, oldest.usage.total_tokens) == (True, 198, 14)
    assert len(upstream.requests) == 2


async def test_streams_that_are_cancelled_or_late(desk: Desk, upstream: OpenAIServer) -> None:
    _, channel = await desk.start()
    chat = chat_pb2_grpc.ChatServiceStub(channel)
    upstream.replies = [STORY] * 21
    streams = [chat.StreamChat(request(), timeout=60) for _ in range(20)]
    for number, stream in enumerate(streams):
        for _ in range(1 + number % 3):
            await stream.read()
        stream.cancel()
    await until(lambda: upstream.abandoned == 20, seconds=3.0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in chat.StreamChat(request(), timeout=0.5):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await desk.until(Outcome.DEADLINE, 1)
    await desk.until(Outcome.CANCELLED, 20)
    rows = await desk.rows()
    assert all(row.usage.source is UsageSource.ESTIMATED and row.usage.completion_tokens for row in rows)


async def test_sigterm_under_load_settles_everything(desk: Desk, upstream: OpenAIServer) -> None:
    server, channel = await desk.start(shutdown_grace_seconds="0.5")
    chat = chat_pb2_grpc.ChatServiceStub(channel)
    upstream.replies = [STORY, Reply(pause=0.2)] * 15
    streams = [chat.StreamChat(request(), timeout=60) for _ in range(30)]
    await asyncio.gather(*(stream.read() for stream in streams))
    server.process.terminate()
    assert await asyncio.to_thread(server.process.wait, 30) == 0
    found = await desk.outcomes()
    assert sum(found.values()) == 30
    assert set(found) <= {Outcome.OK, Outcome.CANCELLED}
    assert found[Outcome.CANCELLED] >= 15
    assert "Traceback" not in server.log.read_text()


async def test_sigkill_loses_no_row(desk: Desk, upstream: OpenAIServer) -> None:
    server, channel = await desk.start()
    chat = chat_pb2_grpc.ChatServiceStub(channel)
    upstream.replies = [*[STORY] * 12, *[Reply()] * 100]
    streams = [chat.StreamChat(request(), timeout=60) for _ in range(12)]
    await asyncio.gather(*(stream.read() for stream in streams))
    unary = chat_pb2.ChatRequest(messages=conversation("hello"), max_output_tokens=500)
    ended = 0

    async def caller() -> None:
        nonlocal ended
        while True:
            await chat.Chat(unary, timeout=20)
            ended += 1

    callers = [asyncio.create_task(caller()) for _ in range(4)]
    await until(lambda: ended > 10)
    server.process.send_signal(signal.SIGKILL)
    await asyncio.gather(*callers, return_exceptions=True)
    _, channel = await desk.start()
    await desk.until(Outcome.OPEN, 0)
    found = await desk.outcomes()
    assert found[Outcome.OK] >= ended, "what callers got is in the ledger"
    assert found[Outcome.LOST] >= 12
    assert sum(found.values()) <= len(upstream.requests) + 4, "none twice; the last ones did not reach the provider"
    lost = [row for row in await desk.rows() if row.outcome is Outcome.LOST]
    assert all((row.usage.source, row.usage.completion_tokens) == (UsageSource.ESTIMATED, 0) for row in lost)
    assert all(row.usage.prompt_tokens > 0 for row in lost)
    await chat_pb2_grpc.ChatServiceStub(channel).Chat(unary, timeout=20)
