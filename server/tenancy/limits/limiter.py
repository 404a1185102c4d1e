"""Limiter: decides about calls under their tenant's limits, in memory for one server, in Redis for several.

A call is admitted by all of its limits and counted in all, or refused and counted in none. Its estimated cost is
reserved before it, and corrected to the actual cost when it is settled.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Union

from server.tenancy.limits.budgets import Spent
from server.tenancy.limits.memory import MemoryLimiter

if TYPE_CHECKING:
    from server.tenancy.limits.redis import RedisLimiter

Limiter = Union[MemoryLimiter, "RedisLimiter"]


@asynccontextmanager
async def open_limiter(redis_url: str | None, replicas: int, spent: Spent) -> AsyncIterator[Limiter]:
    """The limiter in Redis, or in memory without a URL. `spent` is the baseline of its budgets."""
    limiter: Limiter
    if redis_url is None:
        limiter = MemoryLimiter(spent)
    else:
        from server.tenancy.limits.redis import RedisLimiter  # imported only if needed, because redis-py takes time

        limiter = RedisLimiter(redis_url, spent, replicas=replicas)
        await limiter.start()
    try:
        yield limiter
    finally:
        await limiter.close()
