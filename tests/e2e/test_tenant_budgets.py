"""Limits in whole servers: what was spent is in the ledger, also after a restart, and servers share it in Redis."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from quintet.v1 import chat_pb2, chat_pb2_grpc, classification_pb2, classification_pb2_grpc

from tests.e2e.tasks import conversation
from tests.e2e.test_bad_input import details
from tests.e2e.test_ledger import Desk
from tests.fakes import OpenAIServer
from tests.redis_server import RedisServer
from tests.tenants import add_tenant, bearer

# The provider reports 14 tokens a call. A call that may take 20 for its answer reserves 26 before it.
BUDGET = 'roles = ["call"]\n[tenants.acme.service_limits.ChatService]\ntokens_per_day = 50'
Metadata = tuple[tuple[str, str], ...]


@pytest.fixture
async def upstream() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer().running() as server:
        yield server


@pytest.fixture
def desk(tmp_path: Path, upstream: OpenAIServer) -> Iterator[Desk]:
    (tmp_path / "models").mkdir()
    with ExitStack() as stack:
        yield Desk(tmp_path, upstream, stack)


async def chat(channel: grpc.aio.Channel, metadata: Metadata) -> int:
    """Tokens of one call."""
    request = chat_pb2.ChatRequest(messages=conversation("hello"), max_output_tokens=20)
    answer = await chat_pb2_grpc.ChatServiceStub(channel).Chat(request, metadata=metadata, timeout=20)
    return int(answer.usage.total_tokens)


async def refused(channel: grpc.aio.Channel, metadata: Metadata) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await chat(channel, metadata)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value


async def spend(channel: grpc.aio.Channel, metadata: Metadata) -> int:
    """Make the two calls that a budget has room for, and one that is refused; returns what was spent."""
    spent = await chat(channel, metadata) + await chat(channel, metadata)
    assert details(await refused(channel, metadata))["ErrorInfo"].reason == "BUDGET_EXHAUSTED"
    return spent


async def test_a_budget_outlives_the_server(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    metadata = bearer(add_tenant(file, "acme", BUDGET))
    server, channel = await desk.start(tenants=str(file))
    spent = await spend(channel, metadata)
    assert spent == 28
    assert server.stop() == 0
    again, channel = await desk.start(tenants=str(file))
    found = details(await refused(channel, metadata))
    (violation,) = found["QuotaFailure"].violations
    assert violation.subject == "tenant acme, ChatService"
    assert f"{spent} tokens are spent" in violation.description
    assert 0 < found["RetryInfo"].retry_delay.ToTimedelta().total_seconds() <= 86_400
    # Other services have other limits: there is no such model here, but that is all that is wrong.
    classify = classification_pb2_grpc.ClassificationServiceStub(channel).Classify
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await classify(classification_pb2.ClassifyRequest(texts=["a"]), metadata=metadata, timeout=10)
    assert caught.value.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED
    assert again.stop() == 0
    assert sum(row.usage.total_tokens for row in await desk.rows()) == spent


async def test_servers_share_a_budget_and_a_rate_in_redis(desk: Desk, redis: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    acme = bearer(add_tenant(file, "acme", BUDGET))
    hasty = bearer(
        add_tenant(
            file, "hasty", 'roles = ["call"]\n[tenants.hasty.limits]\nrequests_per_minute = 1\nrequest_burst = 2'
        )
    )
    shared = {"tenants": str(file), "redis_url": redis.url}
    _, one = await desk.start(**shared)
    _, other = await desk.start(**shared)
    await spend(one, acme)
    assert details(await refused(other, acme))["ErrorInfo"].reason == "BUDGET_EXHAUSTED"
    assert [await chat(channel, hasty) for channel in (one, other)] == [14, 14]
    for channel in (one, other):
        error = await refused(channel, hasty)
        found = details(error)
        assert found["ErrorInfo"].reason == "QUOTA_EXCEEDED"
        assert 0 < found["RetryInfo"].retry_delay.ToTimedelta().total_seconds() <= 60
        trailers = dict(error.trailing_metadata())
        assert int(str(trailers["grpc-retry-pushback-ms"])) > 0
        assert "x-quintet-degraded" not in trailers
