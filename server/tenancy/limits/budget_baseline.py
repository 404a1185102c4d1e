"""What was spent before counting began, asked of the ledger once for all who wait for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

from server.domain.errors import LedgerUnavailable
from server.domain.money import Cost

# What a tenant spent since the beginning of a period, over all services or for one ("ChatService"): rows that are
# settled at what they cost, open ones at what they reserved.
Spent = Callable[[str, str | None, datetime], Awaitable[Cost]]
_WAIT_SECONDS = 0.5
_FRESH_SECONDS = 10.0

Key = tuple[str, str | None, datetime]


async def nothing_spent(tenant: str, service: str | None, start: datetime) -> Cost:
    """Where there is no ledger."""
    return Cost()


class BudgetBaseline:
    """Asks `spent`. An answer that comes too late for its caller is kept for the next one, for some seconds."""

    def __init__(self, spent: Spent) -> None:
        self._spent = spent
        self._asked: dict[Key, tuple[float, asyncio.Task[Cost]]] = {}

    async def get(self, tenant: str, service: str | None, start: datetime) -> tuple[Cost, float]:
        """What was spent, and the time.monotonic() instant of the question. Raises LedgerUnavailable."""
        key = (tenant, service, start)
        asked = self._asked.get(key)
        if asked is None or (asked[1].done() and asked[0] + _FRESH_SECONDS < time.monotonic()):
            asked = self._asked[key] = (time.monotonic(), asyncio.create_task(self._ask(*key)))
        await asyncio.wait({asked[1]}, timeout=_WAIT_SECONDS)
        if not asked[1].done():
            raise LedgerUnavailable("what was spent so far cannot be read in time", retry_after=1.0)
        if self._asked.get(key) is asked:
            del self._asked[key]
        return asked[1].result(), asked[0]

    async def _ask(self, tenant: str, service: str | None, start: datetime) -> Cost:
        return await self._spent(tenant, service, start)

    async def close(self) -> None:
        """Give up what nobody has waited for."""
        tasks = [task for _, task in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
