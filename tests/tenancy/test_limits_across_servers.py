"""Limits of several servers together: real Redis, real server processes, real calls."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from quintet.v1 import chat_pb2, chat_pb2_grpc, classification_pb2, classification_pb2_grpc
from redis.asyncio import Redis

from tests.conftest import ROOT
from tests.e2e.test_bad_input import details
from tests.redis_server import PASSWORD, RedisServer
from tests.waiting import until

OK = "OK"
CALL_SECONDS = 20.0


class Server:
    """One process of tests/limited_server.py."""

    def __init__(self, redis: RedisServer, replicas: int, limits: dict[str, int], log: Path) -> None:
        self.log = log
        command = [sys.executable, "-m", "tests.limited_server", redis.url, str(replicas), json.dumps(limits)]
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, log.read_text()

    def stop(self) -> None:
        self.process.communicate(timeout=20)


@asynccontextmanager
async def servers(redis: RedisServer, folder: Path, number: int, **limits: int) -> AsyncIterator[list[Server]]:
    running = await asyncio.gather(
        *(asyncio.to_thread(Server, redis, number, limits, folder / f"log{i}") for i in range(number))
    )
    try:
        yield list(running)
    finally:
        for server in running:
            await asyncio.to_thread(server.stop)


@asynccontextmanager
async def channels(found: list[Server]) -> AsyncIterator[list[grpc.aio.Channel]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(grpc.aio.insecure_channel(server.address)) for server in found]


class Outcome:
    """How a call ended: "OK" or the reason of its error, whether limits were degraded, and how long it took."""

    def __init__(self, reason: str, trailers: Any, seconds: float) -> None:
        self.reason = reason
        self.degraded = dict(trailers).get("x-quintet-degraded") == "limits"
        self.seconds = seconds


async def classify(channel: grpc.aio.Channel, milliseconds: int = 0, seconds: float = CALL_SECONDS) -> Outcome:
    request = classification_pb2.ClassifyRequest(texts=[str(milliseconds)])
    return await outcome_of(
        classification_pb2_grpc.ClassificationServiceStub(channel).Classify(request, timeout=seconds)
    )


async def chat(channel: grpc.aio.Channel, reserved: int, spent: int) -> Outcome:
    role = chat_pb2.CHAT_ROLE_USER
    messages = [chat_pb2.ChatMessage(role=role, content=str(text)) for text in (reserved, spent)]
    request = chat_pb2.ChatRequest(messages=messages)
    return await outcome_of(chat_pb2_grpc.ChatServiceStub(channel).Chat(request, timeout=CALL_SECONDS))


async def outcome_of(call: Any) -> Outcome:
    begun = time.monotonic()
    try:
        await call
    except grpc.aio.AioRpcError as error:
        reason = details(error)["ErrorInfo"].reason if error.trailing_metadata() else error.code().name
        return Outcome(reason, error.trailing_metadata(), time.monotonic() - begun)
    return Outcome(OK, await call.trailing_metadata(), time.monotonic() - begun)


async def test_three_servers_admit_exactly_the_burst_of_two_thousand_calls(redis: RedisServer, tmp_path: Path) -> None:
    limits = {"requests_per_minute": 1, "request_burst": 100}
    async with servers(redis, tmp_path, 3, **limits) as found, channels(found) as open_channels:
        answers = await asyncio.gather(*(classify(open_channels[i % 3]) for i in range(2000)))
    assert Counter(answer.reason for answer in answers) == {OK: 100, "QUOTA_EXCEEDED": 1900}
    assert not any(answer.degraded for answer in answers)


async def test_three_servers_admit_exactly_as_many_calls_at_once_as_they_may(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with servers(redis, tmp_path, 3, concurrent_calls=100) as found, channels(found) as open_channels:
        held = [asyncio.create_task(classify(open_channels[i % 3], 60_000, seconds=60)) for i in range(2000)]
        await until(lambda: sum(task.done() for task in held) == 1900, 60)
        assert {task.result().reason for task in held if task.done()} == {"QUOTA_EXCEEDED"}
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)

        async def free() -> int:
            answers = await asyncio.gather(*(classify(open_channels[i % 3], 500) for i in range(100)))
            return sum(answer.reason == OK for answer in answers)

        async with asyncio.timeout(30):  # cancelling frees the places, a moment later
            while await free() < 100:
                pass


async def test_budgets_are_shared_and_settled(redis: RedisServer, tmp_path: Path) -> None:
    async with servers(redis, tmp_path, 2, tokens_per_month=1000) as found, channels(found) as (first, second):
        assert (await chat(first, 900, 100)).reason == OK
        assert (await chat(second, 900, 950)).reason == OK  # more than it reserved
        assert (await chat(first, 1, 1)).reason == "BUDGET_EXHAUSTED"
        assert (await classify(first)).reason == OK  # what costs nothing needs no budget


async def test_a_killed_server_frees_its_places_by_time(redis: RedisServer, tmp_path: Path) -> None:
    async with servers(redis, tmp_path, 2, concurrent_calls=1) as found, channels(found) as (first, second):
        held = asyncio.create_task(classify(first, 60_000, seconds=3))
        async with client(redis) as watching, asyncio.timeout(10):
            while await watching.zcard("quintet:{acme}:*:calls") == 0:
                pass
        begun = time.monotonic()
        found[0].process.kill()
        assert (await held).reason == "UNAVAILABLE"
        assert (await classify(second)).reason == "QUOTA_EXCEEDED"
        async with asyncio.timeout(20):
            while (await classify(second)).reason != OK:
                pass
        assert time.monotonic() - begun > 1  # not because its end was noticed


@pytest.mark.parametrize("outage", ["kill", "freeze"])
async def test_calls_are_answered_while_redis_is_away(redis: RedisServer, tmp_path: Path, outage: str) -> None:
    limits = {"tokens_per_day": 10**6, "concurrent_calls": 1000}
    async with servers(redis, tmp_path, 1, **limits) as found, channels(found) as (channel,):
        answers: list[Outcome] = []
        stopping = asyncio.Event()

        async def load() -> None:
            while not stopping.is_set():
                answers.append(await chat(channel, 10, 3))

        callers = [asyncio.create_task(load()) for _ in range(8)]
        await until(lambda: len(answers) > 20)
        assert not any(answer.degraded for answer in answers)
        redis.kill() if outage == "kill" else redis.freeze()
        await until(lambda: answers[-1].degraded)
        before = len(answers)
        await until(lambda: len(answers) > before + 100)
        redis.start() if outage == "kill" else redis.thaw()
        await until(lambda: not answers[-1].degraded, 20)
        stopping.set()
        await asyncio.gather(*callers)
        assert {answer.reason for answer in answers} == {OK}
        assert max(answer.seconds for answer in answers) < 1.0
    assert await used(redis, "tokens") == 3 * len(answers)  # to the token, those of the outage among them
    log = found[0].log.read_text()
    assert log.count("does not serve limits") == 1
    assert PASSWORD not in log


@asynccontextmanager
async def client(redis: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis.url) as found:
        yield found


async def used(redis: RedisServer, field: str) -> int:
    """What the budget of the day has counted."""
    async with client(redis) as reading:
        (key,) = [key async for key in reading.scan_iter("quintet:{acme}:*:day:*")]
        return int(await reading.hget(key, field) or 0)
