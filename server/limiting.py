"""How the limits of tenants are kept: in Redis if the settings name one, else in this process."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from server.interceptors.limits import Estimate, TenantLimits
from server.settings import Settings
from server.stores.limits import Limiter
from server.stores.limits.memory import MemoryLimiter
from server.stores.limits.seeds import Spent
from server.stores.tenants import Tenant


@asynccontextmanager
async def limiting(
    settings: Settings, tenant: Callable[[str], Tenant | None], spent: Spent, estimates: Mapping[str, Estimate]
) -> AsyncIterator[TenantLimits]:
    """Limits for the tenants that `tenant` finds by name. On leaving, what was settled is written."""
    limiter = await _limiter(settings, spent)
    try:
        yield TenantLimits(limiter, tenant, estimates)
    finally:
        await limiter.close()


async def _limiter(settings: Settings, spent: Spent) -> Limiter:
    if settings.redis_url is None:
        return MemoryLimiter(spent)
    from server.stores.limits.redis import RedisLimiter  # whoever needs none need not wait for its library

    limiter = RedisLimiter(settings.redis_url.get_secret_value(), spent, replicas=settings.replicas)
    await limiter.start()
    return limiter
