"""Tenant limits in the pipeline, through a real channel to a real server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from quintet.v1 import chat_pb2, chat_pb2_grpc, classification_pb2_grpc, model_pb2, model_pb2_grpc

from server.domain.access import Caller
from server.domain.context import current
from server.domain.money import Cost
from server.models.loading import MemoryLimit
from server.observability.metrics import Collector, serving
from server.rpc.admission import Admission
from server.rpc.pipeline import Registrar
from server.rpc.tenant_limits import TenantLimits
from server.tenancy.limits.memory import MemoryLimiter
from server.tenancy.tenants import Limits, Tenant
from tests.e2e.test_bad_input import details
from tests.observability.test_metrics import scrape, value
from tests.rpc.test_pipeline import CHAT, STREAM_CHAT, Chat, Classification, classify
from tests.tenants import nothing_spent
from tests.waiting import until

Code = grpc.StatusCode


class Spending(Chat):
    """Spends two tokens before its first event, and three after it."""

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        current().spent_tokens += 2
        async for event in super().StreamChat(request, context):
            yield event
        current().spent_tokens += 3


async def watch(request: Any, context: Any) -> AsyncIterator[model_pb2.WatchModelsResponse]:
    """ModelService.WatchModels, for ever."""
    yield model_pb2.WatchModelsResponse()
    await asyncio.Event().wait()


WATCH = grpc.unary_stream_rpc_method_handler(
    watch,
    request_deserializer=model_pb2.WatchModelsRequest.FromString,
    response_serializer=model_pb2.WatchModelsResponse.SerializeToString,
)


def by_name(method: str, metadata: Any, context: Any) -> Caller:
    """The metadata `tenant` names the caller."""
    return Caller(str(dict(metadata).get("tenant", "free")))


TENANTS = {
    "free": Tenant("free", frozenset()),
    "slow": Tenant("slow", frozenset(), limits=Limits(requests_per_minute=60, request_burst=1)),
    "single": Tenant("single", frozenset(), limits=Limits(concurrent_calls=1)),
    "poor": Tenant("poor", frozenset(), service_limits={"ChatService": Limits(tokens_per_day=10)}),
    "broke": Tenant("broke", frozenset(), limits=Limits(tokens_per_day=9)),
}


class Limited:
    """A server with limits in memory; StreamChat reserves ten tokens."""

    def __init__(self) -> None:
        self.classification, self.chat = Classification(), Spending()
        self.limits = TenantLimits(MemoryLimiter(nothing_spent), TENANTS.get, {STREAM_CHAT: lambda request: Cost(10)})
        self.admission = Admission(512, 5.0, max_wait_seconds=1.0, lanes=1)
        self.server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        registrar: Any = Registrar(self.server, self.admission, 1 << 20, identify=by_name, limits=self.limits)
        classification_pb2_grpc.add_ClassificationServiceServicer_to_server(self.classification, registrar)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(self.chat, registrar)
        registrar.add_registered_method_handlers("quintet.v1.ModelService", {"WatchModels": WATCH})


@pytest.fixture
async def limited() -> AsyncIterator[tuple[Limited, grpc.aio.Channel]]:
    limited = Limited()
    port = limited.server.add_insecure_port("127.0.0.1:0")
    await limited.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield limited, channel
    await limited.server.stop(None)
    limited.classification.lanes.close()


def by(tenant: str) -> dict[str, Any]:
    return {"metadata": (("tenant", tenant),), "timeout": 10}


def stream(channel: grpc.aio.Channel, tenant: str) -> Any:
    return chat_pb2_grpc.ChatServiceStub(channel).StreamChat(CHAT, **by(tenant))


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    return caught.value


async def test_a_refusal_says_whose_limit_and_when_to_come_again(limited: tuple[Limited, grpc.aio.Channel]) -> None:
    _, channel = limited
    for _ in range(3):
        await classify(channel, **by("free"))
    await classify(channel, **by("slow"))
    error = await refused(classify(channel, **by("slow")))
    found = details(error)
    assert found["ErrorInfo"].reason == "QUOTA_EXCEEDED"
    assert found["ErrorInfo"].metadata["limits"] == "requests_per_minute"
    (violation,) = found["QuotaFailure"].violations
    assert (violation.subject, violation.description) == ("tenant slow", "60 requests a minute, 1 at once")
    pushback = int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])
    assert 0 < pushback == found["RetryInfo"].retry_delay.ToMilliseconds() <= 1000
    assert "x-quintet-degraded" not in dict(error.trailing_metadata())


async def test_a_stream_holds_its_place_until_its_caller_has_gone(limited: tuple[Limited, grpc.aio.Channel]) -> None:
    server, channel = limited
    held = stream(channel, "single")
    await held.read()
    assert (
        details(await refused(classify(channel, **by("single"))))["ErrorInfo"].metadata["limits"] == "concurrent_calls"
    )
    held.cancel()
    await until(lambda: server.admission.running == 0)
    await classify(channel, **by("single"))


async def test_a_stream_that_is_cancelled_pays_for_what_it_had(limited: tuple[Limited, grpc.aio.Channel]) -> None:
    server, channel = limited
    cancelled = stream(channel, "poor")
    await cancelled.read()
    error = await refused(stream(channel, "poor").read())
    assert details(error)["ErrorInfo"].reason == "BUDGET_EXHAUSTED"
    assert "10 tokens are spent or reserved" in (error.details() or "")
    cancelled.cancel()
    await until(lambda: server.admission.running == 0)
    error = await refused(stream(channel, "poor").read())
    assert ": 10 tokens a day (UTC); 2 tokens are spent or reserved" in (error.details() or "")


async def test_what_is_never_admitted_is_not_to_be_retried(limited: tuple[Limited, grpc.aio.Channel]) -> None:
    _, channel = limited
    error = await refused(stream(channel, "broke").read())
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
    assert "RetryInfo" not in details(error)


async def test_a_watch_takes_no_place(limited: tuple[Limited, grpc.aio.Channel]) -> None:
    _, channel = limited
    watch = model_pb2_grpc.ModelServiceStub(channel).WatchModels(model_pb2.WatchModelsRequest(), **by("single"))
    await watch.read()
    await classify(channel, **by("single"))
    watch.cancel()


async def test_refusals_are_published(limited: tuple[Limited, grpc.aio.Channel]) -> None:
    server, channel = limited
    await refused(stream(channel, "broke").read())
    await classify(channel, **by("free"))
    with serving("127.0.0.1", 0, Collector(server.admission, {}, [], MemoryLimit(None), limits=server.limits)) as port:
        found = await scrape(port)
    assert value(found, "quintet_limits_refusals_total", tenant="broke", limit="tokens_per_day") == 1
    assert value(found, "quintet_limits_decision_seconds_count") == 1
    assert value(found, "quintet_limits_degraded") == 0
