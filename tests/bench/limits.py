"""What a decision about limits costs: in memory, and in a real Redis beside a bare PING.

Usage: python -m tests.bench.limits [--calls 20000] [--json data/bench/limits.json]

A decision is enter() and settle(). "one" limit is requests a minute; "all" are eleven: rates of requests and tokens,
calls at once and four budgets of the tenant, rates and two budgets of the service. "alone" is one caller, one decision
after another; "together" is 64 callers at once, as in a busy server. Redis runs on the same machine and writes its log.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import uvloop
from redis.asyncio import Redis

from server.domain.money import Cost
from server.tenancy.limits.limiter import Limiter
from server.tenancy.limits.memory import MemoryLimiter
from server.tenancy.limits.redis import RedisLimiter
from server.tenancy.tenants import Limits, Tenant
from tests.redis_server import RedisServer
from tests.tenants import nothing_spent

MANY = 10**9
NONE = Tenant("none", frozenset())
ONE = Tenant("one", frozenset(), limits=Limits(requests_per_minute=MANY))
ALL = Tenant(
    "all",
    frozenset(),
    limits=Limits(MANY, None, MANY, None, MANY, MANY, MANY, MANY, MANY),
    service_limits={"ChatService": Limits(MANY, None, MANY, None, None, MANY, MANY)},
)
TOGETHER = 64
Row = dict[str, str | float]


def decision(limiter: Limiter, tenant: Tenant) -> Callable[[], Awaitable[None]]:
    async def decide() -> None:
        permit = await limiter.enter(tenant, "ChatService", Cost(500, 300), seconds=30)
        if permit is not None:
            permit.settle(Cost(400, 200))

    return decide


async def measure(name: str, work: Callable[[], Awaitable[object]], number: int, together: int) -> Row:
    """Rate, and medians and 99th percentiles of microseconds."""
    times: list[float] = []

    async def caller(calls: int) -> None:
        for _ in range(calls):
            begun = time.perf_counter()
            await work()
            times.append((time.perf_counter() - begun) * 1e6)

    await caller(100)
    times.clear()
    begun = time.perf_counter()
    await asyncio.gather(*(caller(number // together) for _ in range(together)))
    rate = len(times) / (time.perf_counter() - begun)
    p50, p99 = np.percentile(times, (50, 99))
    return {"what": name, "per_s": rate, "p50_us": float(p50), "p99_us": float(p99)}


async def run(calls: int) -> list[Row]:
    memory = MemoryLimiter(nothing_spent)
    rows = [await measure(f"memory, {tenant.name}", decision(memory, tenant), calls, 1) for tenant in (NONE, ONE, ALL)]
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            rows += await run_redis(server.url, calls)
        finally:
            server.kill()
    return rows


async def run_redis(url: str, calls: int) -> list[Row]:
    limiter = RedisLimiter(url, nothing_spent)
    await limiter.start()
    rows = []
    async with Redis.from_url(url, max_connections=TOGETHER) as client:
        for way, together in (("alone", 1), ("together", TOGETHER)):
            ping = await measure(f"PING, {way}", client.ping, calls, together)
            rows.append(ping)
            for tenant in (ONE, ALL):
                row = await measure(f"redis, {tenant.name}, {way}", decision(limiter, tenant), calls, together)
                rows.append({**row, "p50_of_PING": float(row["p50_us"]) / float(ping["p50_us"])})
    assert not limiter.degraded
    await limiter.close()
    return rows


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--json", type=Path, default=Path("data/bench/limits.json"))
    args = parser.parse_args()
    rows = uvloop.run(run(args.calls))
    print(f"{'':24}{'per_s':>12}{'p50_us':>12}{'p99_us':>12}{'p50/PING':>12}")
    for row in rows:
        ratio = f"{row['p50_of_PING']:12.2f}" if "p50_of_PING" in row else ""
        print(f"{row['what']:24}{row['per_s']:12,.0f}{row['p50_us']:12,.1f}{row['p99_us']:12,.1f}{ratio}")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
