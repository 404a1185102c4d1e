"""Limits in a real Redis: same decisions as in memory, settlements counted once, answers also without Redis."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from server.domain.errors import QuotaExceeded
from server.domain.money import Cost
from server.tenancy.limits import redis_batcher
from server.tenancy.limits.limit_set import Permit
from server.tenancy.limits.memory import MemoryLimiter
from server.tenancy.limits.redis import RedisLimiter
from server.tenancy.tenants import Limits, Tenant
from tests.redis_server import PASSWORD, RedisServer
from tests.tenancy.test_limits import CHAT, SECOND, costs, limits
from tests.tenants import nothing_spent
from tests.waiting import until

# In a hundred years: keys expire by the clock of Redis, which must be far before the time that the test sets.
FAR = 4_920_000_000 * SECOND
NAMES = count()


@asynccontextmanager
async def limiting(server: RedisServer, **options: Any) -> AsyncIterator[RedisLimiter]:
    limiter = RedisLimiter(server.url, **{"spent": nothing_spent, **options})
    await limiter.start()
    try:
        yield limiter
    finally:
        await limiter.close()


@asynccontextmanager
async def client(server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as found:
        yield found


def acme(**own: int) -> Tenant:
    return Tenant("acme", frozenset(), limits=Limits(**own))


async def budget(server: RedisServer) -> int:
    """Tokens that the one account in Redis has counted."""
    async with client(server) as reading:
        (key,) = [key async for key in reading.scan_iter("quintet:*:day:*")]
        return int(await reading.hget(key, "tokens") or 0)


enters = st.tuples(st.sampled_from([CHAT, "RagService"]), costs)
ends = st.tuples(st.integers(0, 5), costs)
steps = st.lists(st.tuples(st.integers(0, 60 * SECOND) | st.integers(0, 3600 * SECOND), enters | ends), max_size=20)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(own=limits, service=limits, steps=steps)
@example(  # a call without an estimate that costs, after the account was opened
    own=Limits(micros_per_month=466),
    service=Limits(),
    steps=[(0, (CHAT, Cost())), (0, (CHAT, Cost(0, 218))), (0, (0, Cost(0, 141))), (0, (CHAT, Cost(0, 180)))],
)
def test_redis_decides_as_memory_does(redis: RedisServer, own: Limits, service: Limits, steps: list[Any]) -> None:
    asyncio.Runner().run(agree(redis, own, service, steps))


async def agree(redis: RedisServer, own: Limits, service: Limits, steps: list[Any]) -> None:
    now = [FAR]
    tenant = Tenant(f"t{next(NAMES)}", frozenset(), limits=own, service_limits={CHAT: service})
    memory = MemoryLimiter(nothing_spent, ticks=lambda: now[0], wall=lambda: now[0])
    permits: list[tuple[Permit, Permit]] = []
    async with limiting(redis, clock=lambda: now[0]) as shared:

        async def outcome(limiter: MemoryLimiter | RedisLimiter, service: str, cost: Cost) -> object:
            try:
                return await limiter.enter(tenant, service, cost, seconds=86_400)
            except QuotaExceeded as error:
                return type(error), error.message, error.excesses, error.retry_after, error.metadata

        for gap, (what, cost) in steps:
            now[0] += gap
            if isinstance(what, str):
                here, there = await outcome(memory, what, cost), await outcome(shared, what, cost)
                if isinstance(here, tuple) or here is None:
                    assert here == there
                else:
                    assert isinstance(here, Permit)
                    assert isinstance(there, Permit), there
                    permits.append((here, there))
            elif what < len(permits):
                for permit in permits.pop(what):
                    permit.settle(cost)
        assert not shared.degraded


async def test_a_settlement_that_is_sent_twice_counts_once(redis: RedisServer) -> None:
    async with limiting(redis) as limiter:
        permit = await limiter.enter(acme(tokens_per_day=1000, tokens_per_minute=1000), CHAT, Cost(100), seconds=5)
        assert permit is not None
        permit.settle(Cost(40))
        (message,) = limiter._batcher._waiting
        await until(lambda: not limiter._batcher._waiting)
        assert await budget(redis) == 40
        limiter._batcher._waiting.append(message)  # as if its acknowledgement had been lost
        limiter._batcher._work.set()
        await until(lambda: not limiter._batcher._waiting)
        assert await budget(redis) == 40


async def test_a_settlement_that_fails_is_sent_again_after_later_ones(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one's rate is a key of another type, until an operator removes it."""
    monkeypatch.setattr(redis_batcher, "_RECONNECT_SECONDS", 0.2)
    tenant = Tenant(
        "acme",
        frozenset(),
        limits=Limits(tokens_per_day=1000),
        service_limits={CHAT: Limits(tokens_per_minute=1000, concurrent_calls=1)},
    )
    async with limiting(redis) as limiter, client(redis) as other:
        first = await limiter.enter(tenant, CHAT, Cost(100), seconds=60)
        second = await limiter.enter(tenant, "RagService", Cost(100), seconds=60)
        assert first
        assert second
        await other.rename("quintet:{acme}:ChatService:tokens", "aside")
        await other.rpush("quintet:{acme}:ChatService:tokens", "x")
        first.settle(Cost(40))
        second.settle(Cost(30))
        await until(lambda: limiter.degraded)
        assert await budget(redis) == 130, "the second one is settled, the first one is not, in any part"
        await other.rename("aside", "quintet:{acme}:ChatService:tokens")
        await until(lambda: not limiter._batcher._waiting and not limiter.degraded)
        assert await budget(redis) == 70
        await entered(limiter, tenant, 1)  # its place is free
        assert await other.zcard(f"quintet:{{acme}}:settled:{limiter._sender}") <= 2
    assert "could not be written" not in caplog.text


async def test_settlements_outlast_a_redis_that_takes_no_writes(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_batcher, "_RECONNECT_SECONDS", 0.02)
    tries = 0
    async with limiting(redis) as limiter, client(redis) as other:
        permit = await entered(limiter, acme(tokens_per_day=1000), 100)
        await other.config_set("maxmemory", 1)
        permit.settle(Cost(40))
        go_away = limiter._batcher._go_away

        async def counted(error: BaseException) -> None:
            nonlocal tries
            tries += 1
            await go_away(error)

        monkeypatch.setattr(limiter._batcher, "_go_away", counted)
        await until(lambda: tries > 5)
        await other.config_set("maxmemory", 0)
        await until(lambda: not limiter._batcher._waiting and not limiter.degraded)
        assert await budget(redis) == 40


async def test_what_is_no_redis_lets_calls_pass() -> None:
    """It answers every line with OK, which is no answer of a script."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.startswith(b"*"):
                writer.write(b"*2\r\n:1\r\n:2\r\n" if b"*1" in line else b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    limiter = RedisLimiter(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", nothing_spent)
    await limiter.start()
    try:
        await entered(limiter, acme(tokens_per_day=1000), 100)
        assert limiter.degraded
    finally:
        await limiter.close()
        server.close()


async def test_scripts_that_were_flushed_are_brought_again(redis: RedisServer) -> None:
    async with limiting(redis) as limiter, client(redis) as other:
        await other.script_flush()
        permit = await limiter.enter(acme(tokens_per_day=1000), CHAT, Cost(100), seconds=5)
        assert permit is not None
        await other.script_flush()
        permit.settle(Cost(7))
        await until(lambda: not limiter._batcher._waiting)
        assert await budget(redis) == 7
        assert not limiter.degraded


async def test_a_call_that_is_cancelled_while_it_is_decided_leaves_nothing(redis: RedisServer) -> None:
    tenant = acme(tokens_per_day=1000, concurrent_calls=1)
    async with limiting(redis) as limiter:
        (await entered(limiter, tenant, 1)).settle(Cost())
        redis.freeze()
        waiting = asyncio.create_task(limiter.enter(tenant, CHAT, Cost(900), seconds=60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        redis.thaw()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: not limiter._batcher._waiting and not limiter.degraded)
        assert await budget(redis) == 0
        (await entered(limiter, tenant, 900)).settle(Cost())


async def entered(limiter: RedisLimiter, tenant: Tenant, tokens: int) -> Permit:
    permit = await limiter.enter(tenant, CHAT, Cost(tokens), seconds=60)
    assert permit is not None
    return permit


class Ledger:
    """Sums rows, open ones at what they reserved."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    async def spent(self, tenant: str, service: str | None, start: datetime) -> Cost:
        return Cost(sum(self.rows))


async def test_a_redis_that_was_emptied_counts_on_from_the_ledger(redis: RedisServer) -> None:
    ledger, tenant = Ledger(), acme(tokens_per_day=1000)
    async with limiting(redis, spent=ledger.spent) as limiter, client(redis) as other:
        done, running = await entered(limiter, tenant, 100), await entered(limiter, tenant, 100)
        ledger.rows = [30, 100]
        done.settle(Cost(30))
        await until(lambda: not limiter._batcher._waiting)
        await other.flushall()
        last = await entered(limiter, tenant, 100)
        assert await budget(redis) == 230
        ledger.rows = [30, 50, 60]
        running.settle(Cost(50))
        last.settle(Cost(60))
        await until(lambda: not limiter._batcher._waiting)
        assert await budget(redis) == sum(ledger.rows)


@pytest.mark.parametrize("is_empty", [False, True])
async def test_what_was_admitted_without_redis_is_counted_once(redis: RedisServer, is_empty: bool) -> None:
    ledger, tenant = Ledger(), acme(tokens_per_day=1000)
    async with limiting(redis, spent=ledger.spent) as limiter:
        before = await entered(limiter, tenant, 100)
        ledger.rows = [100]
        redis.kill()
        if is_empty:
            redis.forget()
        during = await entered(limiter, tenant, 100)
        assert limiter.degraded
        ledger.rows = [50, 60]
        before.settle(Cost(50))
        during.settle(Cost(60))
        redis.start()
        await until(lambda: not limiter.degraded and not limiter._batcher._waiting)
        (await entered(limiter, tenant, 1)).settle(Cost())
        await until(lambda: not limiter._batcher._waiting)
        assert await budget(redis) == sum(ledger.rows)


async def test_without_redis_from_the_start_each_server_has_its_share(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis.kill()
    tenant = acme(concurrent_calls=4)
    with caplog.at_level(logging.WARNING):
        async with limiting(redis, replicas=2) as limiter:
            assert limiter.degraded
            for _ in range(2):
                await entered(limiter, tenant, 0)
            with pytest.raises(QuotaExceeded):
                await entered(limiter, tenant, 0)
            redis.start()
            await until(lambda: not limiter.degraded)
            for _ in range(4):
                await entered(limiter, tenant, 0)
    assert caplog.text.count("does not serve limits") == 1
    assert PASSWORD not in caplog.text


async def test_a_wrong_password_is_not_told(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    redis.url = redis.url.replace(PASSWORD, "wrong-password-of-redis")
    async with limiting(redis) as limiter:
        assert limiter.degraded
    assert "AuthenticationError" in caplog.text
    assert "wrong-password-of-redis" not in caplog.text


async def test_all_keys_expire_by_themselves(redis: RedisServer) -> None:
    async with limiting(redis) as limiter, client(redis) as other:
        permit = await entered(limiter, acme(requests_per_minute=600, tokens_per_day=5, concurrent_calls=1), 1)
        permit.settle(Cost())
        await until(lambda: not limiter._batcher._waiting)
        keys = {key: await other.ttl(key) async for key in other.scan_iter("*")}
        assert len(keys) >= 2
        assert all(0 <= seconds <= 3 * 86_400 for seconds in keys.values()), keys
