"""PostgreSQL, Redis and the collector hang, all at once: at the start, while serving, and at the stop."""

import asyncio
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from quintet.v1 import chat_pb2, chat_pb2_grpc

from server.domain.usage import Outcome, Selection
from server.usage.ledger import SqlLedger
from server.usage.reader import SqlReader
from tests.e2e.tasks import conversation
from tests.e2e.test_bad_input import details
from tests.e2e.test_ledger import Desk, desk, upstream
from tests.fakes import OpenAIServer, Reply
from tests.ledgers import postgres
from tests.postgres import Postgres
from tests.redis_server import RedisServer
from tests.tenants import add_tenant, bearer
from tests.waiting import until

__all__ = ["desk", "postgres", "upstream"]  # fixtures
COLLECTOR = (
    "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print(flush=True); s.accept()"
)
Metadata = tuple[tuple[str, str], ...]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def collector() -> Iterator[int]:
    """The port of a process that accepts connections, and is stopped."""
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", COLLECTOR, str(port)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        yield port
        process.kill()


def published(port: int) -> dict[str, float]:
    """Metrics without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(quintet_\w+) (\S+)$", text, re.MULTILINE)}


async def chat(channel: grpc.aio.Channel, metadata: Metadata) -> str:
    """The reason of the error, or OK."""
    request = chat_pb2.ChatRequest(messages=conversation("hello"), max_output_tokens=20)
    try:
        await chat_pb2_grpc.ChatServiceStub(channel).Chat(request, metadata=metadata, timeout=20)
    except grpc.aio.AioRpcError as error:
        return str(details(error)["ErrorInfo"].reason)
    return "OK"


@pytest.fixture(autouse=True)
def quick_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")  # milliseconds until spans are sent


async def test_nothing_waits_for_what_hangs(
    desk: Desk, tmp_path: Path, upstream: OpenAIServer, postgres: Postgres, redis: RedisServer, collector: int
) -> None:
    target, port = postgres.new_database(), free_port()
    metadata = bearer(add_tenant(tmp_path / "tenants.toml", "acme", 'roles = ["call"]\nlimits.concurrent_calls = 9'))
    away = {"quintet_ledger_away": 1.0, "quintet_limits_degraded": 1.0, "quintet_traces_away": 1.0}

    def seen() -> dict[str, float]:
        found = published(port)
        return {name: found[name] for name in away}

    postgres.freeze()
    redis.freeze()
    try:
        server, channel = await desk.start(
            tenants=str(tmp_path / "tenants.toml"),
            ledger_url=target,
            redis_url=redis.url,
            traces=f"http://127.0.0.1:{collector}",
            metrics_port=str(port),
        )
        assert await chat(channel, metadata) == "LEDGER_UNAVAILABLE"
        await until(lambda: seen() == away, 20)
        postgres.thaw()
        redis.thaw()
        await until(lambda: {**seen(), "quintet_traces_away": 0.0} == dict.fromkeys(away, 0.0), 20)
        assert await chat(channel, metadata) == "OK"

        upstream.replies = [Reply(deltas=["word "] * 10, pause=0.2)]
        running = asyncio.create_task(chat(channel, metadata))
        await until(lambda: upstream.active)
        postgres.freeze()
        redis.freeze()
        assert await chat(channel, metadata) == "LEDGER_UNAVAILABLE"
        await until(lambda: seen() == away, 20)
        assert [await chat(channel, metadata) for _ in range(20)] == ["LEDGER_UNAVAILABLE"] * 20
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = await check(health_pb2.HealthCheckRequest(service="quintet.v1.ChatService"), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert await running == "OK"

        assert await asyncio.to_thread(server.stop, 20) == 0
    finally:
        postgres.thaw()
        redis.thaw()
    lines = server.log.read_text()
    assert lines.count("the ledger cannot be written to") == 2
    assert lines.count("traces cannot be sent") == 1
    assert "LEDGER_UNAVAILABLE" not in lines, "a line when it begins is enough"
    async with aclosing(SqlLedger(target, folder=tmp_path / "state")) as ledger:  # as the next server does
        await until(lambda: ledger.writer.was_tried and not ledger.writer.waiting)
    reader = SqlReader(target)
    found = await reader.entries(Selection(), before="", limit=9)
    await reader.close()
    assert [row.outcome for row in found] == [Outcome.OK] * 2
