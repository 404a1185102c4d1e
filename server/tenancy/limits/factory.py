"""How the limits of tenants are kept: in Redis if the settings name one, else in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.settings import Settings
from server.tenancy.limits.budget_baseline import Spent
from server.tenancy.limits.limiter import Limiter
from server.tenancy.limits.memory import MemoryLimiter


@asynccontextmanager
async def limiting(settings: Settings, spent: Spent) -> AsyncIterator[Limiter]:
    """A limiter that knows what was `spent` before it. On leaving, what was settled is written."""
    limiter = await _limiter(settings, spent)
    try:
        yield limiter
    finally:
        await limiter.close()


async def _limiter(settings: Settings, spent: Spent) -> Limiter:
    if settings.redis_url is None:
        return MemoryLimiter(spent)
    from server.tenancy.limits.redis import RedisLimiter  # whoever needs none need not wait for its library

    limiter = RedisLimiter(settings.redis_url.get_secret_value(), spent, replicas=settings.replicas)
    await limiter.start()
    return limiter
