"""A bounded number of long tasks at once, with a bounded queue in front."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.domain.context import charge
from server.domain.errors import DeadlineExceeded, ServerOverloaded


class ConcurrencyLimiter:
    """Up to `concurrency` blocks run at once, and up to `queue` wait. `what` names the resource in errors."""

    def __init__(self, what: str, concurrency: int, queue: int) -> None:
        self._what = what
        self._free = asyncio.Semaphore(concurrency)
        self._queue = queue
        self._waiting = 0

    @asynccontextmanager
    async def take(self, deadline: float) -> AsyncIterator[None]:
        """Run the block as one of them. Raises ServerOverloaded if the queue is full, or DeadlineExceeded."""
        if self._free.locked() and self._waiting >= self._queue:
            raise ServerOverloaded(f"too many calls wait for {self._what}", retry_after=5.0)
        part = f"wait for {self._what}" if self._free.locked() else ""
        self._waiting += 1
        arrived = time.monotonic()
        try:
            async with asyncio.timeout(remaining(deadline)):
                await self._free.acquire()
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed while the call waited for {self._what}") from None
        finally:
            self._waiting -= 1
        charge(queue=time.monotonic() - arrived, part=part, arrived=arrived)
        try:
            yield
        finally:
            self._free.release()


def remaining(deadline: float) -> float:
    """Seconds until `deadline`, a time.monotonic() instant. Raises DeadlineExceeded if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise DeadlineExceeded("the deadline passed")
    return seconds
