"""The pipeline around a call, through a real channel to a real server with a small servicer."""

import asyncio
import contextlib
import gc
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from quintet.v1 import chat_pb2, chat_pb2_grpc, classification_pb2, classification_pb2_grpc

from server.domain.context import Context, charge, current
from server.domain.errors import ServerOverloaded, ServerStopping
from server.inference.scheduler import Scheduler
from server.rpc.admission import Admission
from server.rpc.health import Health
from server.rpc.method_stats import Method
from server.rpc.pipeline import Registrar
from tests.e2e.test_bad_input import details
from tests.waiting import until

CLASSIFY = "/quintet.v1.ClassificationService/Classify"
STREAM_CHAT = "/quintet.v1.ChatService/StreamChat"
REQUEST = classification_pb2.ClassifyRequest(texts=["a"])
CHAT = chat_pb2.StreamChatRequest(messages=[chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_USER, content="hi")])
Code = grpc.StatusCode


class Classification(classification_pb2_grpc.ClassificationServiceServicer):
    """Runs `work` on one lane."""

    def __init__(self) -> None:
        self.lanes = Scheduler(1, queue_limit=1000)
        self.work: Callable[[], Any] = lambda: None
        self.begun = 0

    async def Classify(
        self, request: classification_pb2.ClassifyRequest, context: Any
    ) -> classification_pb2.ClassifyResponse:
        def work() -> None:
            self.begun += 1
            self.work()

        await self.lanes.run(work, deadline=current().deadline)
        return classification_pb2.ClassifyResponse()


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """Streams one event and waits for `go_on`."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def Chat(self, request: Any, context: Any) -> chat_pb2.ChatResponse:
        return chat_pb2.ChatResponse()

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        yield chat_pb2.StreamChatResponse()
        await self.go_on.wait()
        charge(upstream=0.25)


class Served:
    """A server with one lane, one second of waiting allowed, and a default deadline of one second."""

    def __init__(self) -> None:
        self.classification, self.chat = Classification(), Chat()
        self.health = Health([], set())
        self.admission = Admission(512, 1.0, max_wait_seconds=1.0, lanes=1)

    async def start(self) -> grpc.aio.Channel:
        self.server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        registrar: Any = Registrar(self.server, self.admission, 1 << 20)
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(self.classification, registrar)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(self.chat, registrar)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    @property
    def classify(self) -> Method:
        return self.admission.method(CLASSIFY)

    def ended(self, method: str) -> dict[tuple[grpc.StatusCode, str], int]:
        return {key: sum(durations.counts) for key, durations in self.admission.method(method).ended.items()}


@pytest.fixture
async def served() -> AsyncIterator[tuple[Served, grpc.aio.Channel]]:
    served = Served()
    channel = await served.start()
    yield served, channel
    await channel.close()
    await served.server.stop(None)
    served.classification.lanes.close()


def classify(channel: grpc.aio.Channel, **options: Any) -> Any:
    return classification_pb2_grpc.ClassificationServiceStub(channel).Classify(REQUEST, **options)


def timing(trailers: Any) -> dict[str, float]:
    text = dict(trailers)["server-timing"]
    return {name: float(value) for name, value in re.findall(r"(\w+);dur=([\d.]+)", text)}


async def test_a_trailer_says_where_the_time_went(served: tuple[Served, grpc.aio.Channel]) -> None:
    server, channel = served
    server.classification.work = lambda: time.sleep(0.02)
    first, second = classify(channel), classify(channel)
    await asyncio.gather(first, second)
    times = [timing(await call.trailing_metadata()) for call in (first, second)]
    assert all(spent["compute"] >= 20 and spent["upstream"] == 0 for spent in times)
    assert max(spent["queue"] for spent in times) >= 10  # one lane: the other one waited
    server.chat.go_on.set()
    stream = chat_pb2_grpc.ChatServiceStub(channel).StreamChat(CHAT)
    assert len([event async for event in stream]) == 1
    assert timing(await stream.trailing_metadata())["upstream"] == 250


async def test_refusals_leave_no_garbage(served: tuple[Served, grpc.aio.Channel]) -> None:
    """Garbage makes collections that hold the GIL; in a flood of refusals they would come again and again."""
    server, channel = served
    server.admission.stopping = True

    def of_calls() -> list[Any]:
        return [thing for thing in gc.get_objects() if type(thing) in (ServerStopping, Context)]

    gc.collect()
    before = {id(thing) for thing in of_calls()}  # other tests keep some
    gc.disable()
    try:
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as caught:
                await classify(channel)
            assert details(caught.value)["ErrorInfo"].reason == "SERVER_STOPPING"
            with pytest.raises(grpc.RpcError):
                await chat_pb2_grpc.ChatServiceStub(channel).StreamChat(CHAT).read()
            del caught
        left = [thing for thing in of_calls() if id(thing) not in before]
    finally:
        gc.enable()
    assert left == []


async def test_calls_are_counted_by_how_they_ended(served: tuple[Served, grpc.aio.Channel]) -> None:
    server, channel = served
    await classify(channel)
    invoke: Any = channel.unary_unary(CLASSIFY)
    with pytest.raises(grpc.RpcError) as caught:
        await invoke(b"")
    assert timing(caught.value.trailing_metadata()) == {"queue": 0, "compute": 0, "upstream": 0}
    assert server.ended(CLASSIFY) == {(Code.OK, ""): 1, (Code.INVALID_ARGUMENT, "INVALID_REQUEST"): 1}
    streams = [chat_pb2_grpc.ChatServiceStub(channel).StreamChat(CHAT) for _ in range(2)]
    await streams[0].read()
    await streams[1].read()
    assert server.admission.running == server.admission.method(STREAM_CHAT).running == 2
    streams[0].cancel()
    await until(lambda: server.ended(STREAM_CHAT) == {(Code.CANCELLED, ""): 1})
    with pytest.raises(grpc.RpcError) as caught:  # it brought no deadline, and the default one passes
        await streams[1].read()
    assert details(caught.value)["ErrorInfo"].reason == "DEADLINE_EXCEEDED"
    assert server.admission.running == 0


async def test_a_call_ends_at_the_deadline_that_it_brought(served: tuple[Served, grpc.aio.Channel]) -> None:
    server, channel = served
    server.classification.work = lambda: time.sleep(0.1)
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.gather(*(classify(channel, timeout=0.25) for _ in range(8)))
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    await until(lambda: server.admission.running == 0)
    assert server.ended(CLASSIFY).keys() & {(Code.DEADLINE_EXCEEDED, ""), (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")}
    assert server.classification.begun < 8  # what could not be finished in time was not begun


async def test_overload_is_refused_and_the_rest_is_served(served: tuple[Served, grpc.aio.Channel]) -> None:
    server, channel = served
    server.classification.work = lambda: time.sleep(0.1)
    await classify(channel)
    assert server.classify.seconds_per_byte * len(REQUEST.SerializeToString()) >= 0.1
    flood = [classify(channel, timeout=20) for _ in range(100)]
    answers = asyncio.gather(*flood, return_exceptions=True)
    await until(lambda: server.admission.refused["wait"])
    health = health_pb2_grpc.HealthStub(channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    refused = [answer for answer in await answers if isinstance(answer, grpc.RpcError)]
    assert 0 < len(refused) < 100
    assert server.classification.begun == 1 + 100 - len(refused)  # all admitted calls were served
    for error in refused:
        refusal: Any = error
        assert refusal.code() is Code.RESOURCE_EXHAUSTED
        found = details(refusal)
        assert found["ErrorInfo"].reason == "SERVER_OVERLOADED"
        pushback = int(dict(refusal.trailing_metadata())["grpc-retry-pushback-ms"])
        assert pushback == found["RetryInfo"].retry_delay.ToMilliseconds() >= 500
    assert server.admission.running == server.classify.running == server.classify.backlog_seconds == 0
    await classify(channel)


@pytest.mark.parametrize("request_id", ["short", "x" * 32, "y" * 128, ""])
async def test_a_refusal_names_its_own_call(served: tuple[Served, grpc.aio.Channel], request_id: str) -> None:
    server, channel = served
    server.admission.running = 10_000  # as if so many calls ran
    stub: Any = classification_pb2_grpc.ClassificationServiceStub(channel)
    ids = []
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Classify(REQUEST, metadata=(("x-request-id", request_id),) if request_id else ())
        refusal: Any = caught.value
        found = details(refusal)
        ids.append(found["ErrorInfo"].metadata["request_id"])
        assert ids[-1] == dict(refusal.trailing_metadata())["x-request-id"]
        assert found["ErrorInfo"].reason == "SERVER_OVERLOADED"
        assert found["RetryInfo"].retry_delay.ToMilliseconds() == 500
    server.admission.running = 0
    assert ids == [request_id] * 2 if request_id else len(set(ids)) == 2


async def test_a_call_that_cannot_be_in_time_is_refused(served: tuple[Served, grpc.aio.Channel]) -> None:
    server, channel = served
    server.classification.work = lambda: time.sleep(0.1)
    await classify(channel)
    waiting = [classify(channel, timeout=20) for _ in range(6)]
    await until(lambda: server.classify.running == 6)
    with pytest.raises(grpc.RpcError) as caught:
        await classify(channel, timeout=0.3)
    assert details(caught.value)["ErrorInfo"].reason == "SERVER_OVERLOADED"
    await asyncio.gather(*waiting)
    with pytest.raises(grpc.RpcError) as caught:  # no other call runs: the estimate may be wrong, so it is tried
        await classify(channel, timeout=0.05)
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    await until(lambda: server.admission.running == 0)


def test_a_backlog_is_divided_by_the_lanes_that_serve_it() -> None:
    admission = Admission(512, 60.0, max_wait_seconds=1.0, lanes=4, lanes_of={"test.Narrow": 1})
    admitted = dict.fromkeys(("/test.Narrow/Do", "/test.Wide/Do"), 0)
    for name in admitted:
        method = admission.method(name)
        method.seconds_per_byte = 0.5
        with contextlib.suppress(ServerOverloaded):  # once the wait is more than 4 times its own work
            while True:
                admission.enter(Context(name, "1", time.monotonic() + 60), method, 1)
                admitted[name] += 1
    assert admitted == {"/test.Narrow/Do": 5, "/test.Wide/Do": 17}


async def test_streamed_requests_are_checked_one_by_one() -> None:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    admission = Admission(1, 5.0, max_wait_seconds=1.0, lanes=1)
    registrar: Any = Registrar(server, admission, 100)
    texts: list[str] = []

    async def collect(requests: Any, context: Any) -> classification_pb2.ClassifyResponse:
        async for request in requests:
            texts.extend(request.texts)
        return classification_pb2.ClassifyResponse()

    handler = grpc.stream_unary_rpc_method_handler(
        collect,
        request_deserializer=classification_pb2.ClassifyRequest.FromString,
        response_serializer=classification_pb2.ClassifyResponse.SerializeToString,
    )
    registrar.add_registered_method_handlers("test.Import", {"All": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            invoke: Any = channel.stream_unary("/test.Import/All")
            await invoke(iter([REQUEST.SerializeToString()] * 2))
            assert texts == ["a", "a"]
            with pytest.raises(grpc.RpcError) as caught:
                await invoke(iter([REQUEST.SerializeToString(), b""]))
            assert caught.value.code() is Code.INVALID_ARGUMENT
            assert texts == ["a", "a", "a"]
    finally:
        await server.stop(None)
