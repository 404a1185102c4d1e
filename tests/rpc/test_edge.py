"""What clients can hold or cost: before they are known, while they send, while they do not read, while it stops."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from quintet.v1 import chat_pb2, chat_pb2_grpc, classification_pb2, classification_pb2_grpc

from server.domain.access import Caller
from server.domain.context import Context
from server.domain.errors import DeadlineExceeded, InvalidRequest, ModelLoading, NotFound, Unauthenticated, Violation
from server.rpc import anonymous, receiving
from server.rpc.admission import Admission
from server.rpc.anonymous import Anonymous
from server.rpc.grpc_server import make_server
from server.rpc.health import Health
from server.rpc.listener import hang_up, options
from server.rpc.pipeline import Registrar
from server.rpc.reflection import add_reflection
from tests.campaigns.fuzz.http2 import Connection, Ended, message, request_headers
from tests.e2e.test_bad_input import details
from tests.waiting import until

CLASSIFY = "/quintet.v1.ClassificationService/Classify"
STREAM_CHAT = "/quintet.v1.ChatService/StreamChat"
CHECK = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
REQUEST = classification_pb2.ClassifyRequest(texts=["a"])
CHAT = chat_pb2.StreamChatRequest(messages=[chat_pb2.ChatMessage(role=chat_pb2.CHAT_ROLE_USER, content="hi")])
MIB = 1024 * 1024
Code = grpc.StatusCode


class Classification(classification_pb2_grpc.ClassificationServiceServicer):
    def __init__(self) -> None:
        self.work: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0)
        self.begun = 0

    async def Classify(self, request: Any, context: Any) -> classification_pb2.ClassifyResponse:
        self.begun += 1
        await self.work()
        response = classification_pb2.ClassifyResponse()
        response.model.name = "m" * (MIB if request.model == "large" else 1)
        return response


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """A stream without end."""

    async def Chat(self, request: Any, context: Any) -> chat_pb2.ChatResponse:
        return chat_pb2.ChatResponse()

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        response = chat_pb2.StreamChatResponse()
        response.delta.text = "x" * 10_000
        while True:
            yield response
            await asyncio.sleep(0)


def identify(method: str, metadata: Any, context: Any) -> Caller:
    """The tenant that the header says."""
    tenant = dict(metadata).get("tenant")
    if tenant is None:
        raise Unauthenticated("who are you?")
    return Caller(tenant)


class Served:
    """A server that receives four requests of 64 MiB at once. `deadline` is that of calls that bring none."""

    def __init__(self, deadline: float) -> None:
        self.classification = Classification()
        self.admission = Admission(512, deadline, max_wait_seconds=1.0, lanes=1)
        self.server = make_server(options(64 * MIB))
        registrar: Any = Registrar(self.server, self.admission, 64 * MIB, identify=identify)
        anonymous: Any = Anonymous(self.server)
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(self.classification, registrar)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(Chat(), registrar)
        health_pb2_grpc.add_HealthServicer_to_server(Health([], set()), anonymous)
        add_reflection(anonymous, [])
        self.registrar, self.anonymous = registrar, anonymous
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    async def raw(self, **settings: Any) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(**settings), "127.0.0.1", self.port
        )
        return connection

    async def stopped(self, seconds: float) -> None:
        """Stop as the app does; fails if it takes longer."""
        async with asyncio.timeout(seconds):
            self.anonymous.stop()
            await self.registrar.drain(seconds)
            hang_up(self.port)
            await self.server.stop(None)


@contextlib.asynccontextmanager
async def serving(deadline: float = 10.0) -> AsyncIterator[tuple[Served, grpc.aio.Channel]]:
    served = Served(deadline)
    await served.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        try:
            yield served, channel
        finally:
            await served.server.stop(None)


def headers(path: str, tenant: str = "") -> list[tuple[bytes, bytes]]:
    return request_headers(path, [(b"tenant", tenant.encode())] if tenant else [])


def classify(channel: grpc.aio.Channel, **changes: Any) -> Any:
    stub = classification_pb2_grpc.ClassificationServiceStub(channel)
    return stub.Classify(classification_pb2.ClassifyRequest(texts=["a"], **changes), metadata=(("tenant", "a"),))


async def soon(call: Awaitable[Ended], seconds: float = 5.0) -> Ended:
    async with asyncio.timeout(seconds):
        return await call


async def test_a_caller_is_known_before_its_request_arrives() -> None:
    async with serving() as (served, _):
        connection = await served.raw()
        for path in (CLASSIFY, STREAM_CHAT):
            assert (await soon(connection.call(headers(path), b"", ends=False))).status == Code.UNAUTHENTICATED.value[0]
        served.admission.stopping = True
        ended = await soon(connection.call(headers(CLASSIFY, "a"), b"", ends=False))
        assert ended.status == Code.UNAVAILABLE.value[0]
        assert served.classification.begun == 0


async def test_a_request_that_does_not_come_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "SECONDS", 0.3)
    async with serving() as (served, _):
        connection = await served.raw()
        half = message(REQUEST.SerializeToString())[:-1]
        paths = (CLASSIFY, STREAM_CHAT, CHECK, "/grpc.health.v1.Health/Watch", REFLECTION)
        calls = [connection.call(headers(path, "a"), body, ends=False) for path in paths for body in (b"", half)]
        assert {each.status for each in await asyncio.gather(*map(soon, calls))} == {Code.DEADLINE_EXCEEDED.value[0]}
        ended = await soon(connection.call(headers(CLASSIFY, "a"), b""))
        assert (ended.status, "without a request" in ended.text) == (Code.INVALID_ARGUMENT.value[0], True)


async def test_of_too_many_requests_the_one_who_sends_most_loses_the_oldest() -> None:
    async with serving() as (served, channel):
        connection = await served.raw()
        body = message(b"x" * MIB)[:-1]
        many = [asyncio.create_task(connection.call(headers(CLASSIFY, "a"), body, ends=False)) for _ in range(6)]
        other = asyncio.create_task(connection.call(headers(CLASSIFY, "b"), body, ends=False))
        async with asyncio.timeout(5):
            await asyncio.wait(many[:3])
        assert {task.result().status for task in many[:3]} == {Code.RESOURCE_EXHAUSTED.value[0]}
        await classify(channel)
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in (*many[3:], other))
        await served.stopped(5)
        assert {task.result().status for task in (*many[3:], other)} == {Code.UNAVAILABLE.value[0]}


@pytest.mark.parametrize(("path", "request_"), [(STREAM_CHAT, CHAT), (CLASSIFY, REQUEST)])
@pytest.mark.parametrize("brought", [b"", b"300m"])
async def test_a_client_that_does_not_read_hears_of_its_deadline(path: str, request_: Any, brought: bytes) -> None:
    """Also if it has set none itself; and a stop need not wait for it."""
    async with serving(deadline=0.3) as (served, channel):
        connection = await served.raw(window=5_000)
        extra = [(b"grpc-timeout", brought)] if brought else []
        sent = classification_pb2.ClassifyRequest(texts=["a"], model="large") if path == CLASSIFY else request_
        ended = await soon(connection.call([*headers(path, "a"), *extra], message(sent.SerializeToString())))
        assert ended.reset is not None or ended.status in {Code.CANCELLED.value[0], Code.DEADLINE_EXCEEDED.value[0]}
        await until(lambda: served.admission.running == 0)
        await classify(channel)
        await served.stopped(2)


async def test_a_refused_unary_call_is_retried_by_the_clients_policy() -> None:
    """Which it is only if nothing but the status is sent."""

    async def fail_first() -> None:
        if served.classification.begun == 1:
            raise ModelLoading("the model is loading", retry_after=0.01)

    policy = {"maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.1s", "backoffMultiplier": 2}
    config = {"methodConfig": [{"name": [{}], "retryPolicy": {**policy, "retryableStatusCodes": ["UNAVAILABLE"]}}]}
    async with serving() as (served, _):
        served.classification.work = fail_first
        given = (("grpc.service_config", json.dumps(config)), ("grpc.enable_retries", 1))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}", options=given) as channel:
            await classify(channel)
        assert served.classification.begun == 2


async def test_what_runs_finishes_and_what_comes_late_hears_that_the_server_stops() -> None:
    async with serving() as (served, channel):
        finish = asyncio.Event()
        served.classification.work = finish.wait
        running = asyncio.ensure_future(classify(channel))
        await until(lambda: served.admission.running)
        stop = asyncio.create_task(served.stopped(5))
        await until(lambda: served.admission.stopping)
        for _ in range(20):
            with pytest.raises(grpc.RpcError) as caught:
                await classify(channel)
            assert caught.value.code() is Code.UNAVAILABLE
            assert details(caught.value)["ErrorInfo"].reason == "SERVER_STOPPING"
        finish.set()
        assert (await running).model.name
        while not stop.done():  # callers that go on until the last moment
            with pytest.raises(grpc.RpcError) as caught:
                await classify(channel)
            assert caught.value.code() is Code.UNAVAILABLE, caught.value
        await stop


async def test_a_stream_of_requests_that_has_begun_may_finish() -> None:
    async def count(requests: Any, context: Any) -> classification_pb2.ClassifyResponse:
        response = classification_pb2.ClassifyResponse()
        async for _ in requests:
            response.model.name += "m"
            begun.set()
        return response

    begun = asyncio.Event()
    handler = grpc.stream_unary_rpc_method_handler(
        count,
        request_deserializer=classification_pb2.ClassifyRequest.FromString,
        response_serializer=classification_pb2.ClassifyResponse.SerializeToString,
    )
    served = Served(10.0)
    served.registrar.add_registered_method_handlers("quintet.Import", {"All": handler})
    await served.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        invoke: Any = channel.stream_unary("/quintet.Import/All")
        call = invoke(metadata=(("tenant", "a"),))
        await call.write(REQUEST.SerializeToString())
        await begun.wait()
        stop = asyncio.create_task(served.stopped(5))
        await until(lambda: served.admission.stopping)
        await call.write(REQUEST.SerializeToString())
        await call.done_writing()
        assert classification_pb2.ClassifyResponse.FromString(await call).model.name == "mm"
        await stop


async def test_health_and_reflection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anonymous, "_STREAMS_OF_A_HOST", 3)
    async with serving() as (served, channel):
        connection = await served.raw()
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for watch in watches:
            await watch.read()
        too_many = Code.RESOURCE_EXHAUSTED.value[0]
        for path in ("/grpc.health.v1.Health/Watch", REFLECTION):
            assert (await soon(connection.call(headers(path), b"", ends=False))).status == too_many
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
        watches[0].cancel()
        await until(lambda: served.anonymous._streams.total() == 2)
        reflection: Any = channel.stream_stream(REFLECTION)
        stream = reflection()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
        assert await stream.read()
        large = health_pb2.HealthCheckRequest(service="x" * MIB)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Check(large)
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED
        await served.stopped(2)


async def test_compressed_requests_are_refused_by_their_headers() -> None:
    async with serving() as (served, _):
        connection = await served.raw()
        for path in (CLASSIFY, CHECK):
            sent = [*headers(path, "a"), (b"grpc-encoding", b"gzip")]
            assert (await soon(connection.call(sent, b"", ends=False))).status == Code.UNIMPLEMENTED.value[0]


async def test_a_timeout_inside_is_not_the_callers_deadline(caplog: pytest.LogCaptureFixture) -> None:
    async def time_out() -> None:
        raise TimeoutError

    async with serving() as (served, channel):
        served.classification.work = time_out
        with pytest.raises(grpc.RpcError) as caught:
            await classify(channel)
        assert caught.value.code() is Code.INTERNAL
        assert "unexpected TimeoutError" in caplog.text


async def test_a_client_that_leaves_while_it_is_answered_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving() as (served, channel):
        stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
        for _ in range(30):
            stream = stub.StreamChat(CHAT, metadata=(("tenant", "a"),))
            await stream.read()
            stream.cancel()
        for _ in range(30):
            connection = await served.raw(window=5_000)
            task = asyncio.create_task(connection.call(headers(CLASSIFY, "a"), message(REQUEST.SerializeToString())))
            await asyncio.sleep(0.002)
            connection.close()
            await task
        await until(lambda: served.admission.running == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], caplog.text


def test_a_short_deadline_is_no_overload(caplog: pytest.LogCaptureFixture) -> None:
    admission = Admission(512, 60.0, max_wait_seconds=1.0, lanes=1)
    method = admission.method("/test.A/Do")
    method.seconds_per_byte = 0.005
    admission.enter(Context("/test.A/Do", "1", time.monotonic() + 60), method, 1)
    with pytest.raises(DeadlineExceeded, match=r"the deadline is too short: [0-3] ms are left"):
        admission.enter(Context("/test.A/Do", "2", time.monotonic() + 0.003), method, 1)
    assert (admission.refused["wait"], admission.refused["late"]) == (0, 1)
    assert "overloaded" not in caplog.text


LONG = "好" * 400


@pytest.mark.parametrize(
    "error",
    [
        NotFound(f"no such collection: {LONG}", metadata={"collection": LONG, "known": LONG}),
        InvalidRequest([Violation(f"{LONG}[{number}]", LONG) for number in range(64)]),
        InvalidRequest([Violation("a\ud800b", "lone surrogate \udfff, NUL \0, emoji 😀" * 30)]),
    ],
)
async def test_errors_with_long_texts_arrive(error: Exception) -> None:
    async def fail() -> None:
        raise error

    async with serving() as (served, channel):
        served.classification.work = fail
        with pytest.raises(grpc.RpcError) as caught:
            await classify(channel)
        assert caught.value.code() in (Code.NOT_FOUND, Code.INVALID_ARGUMENT), caught.value
        assert details(caught.value)["ErrorInfo"].metadata["request_id"]
