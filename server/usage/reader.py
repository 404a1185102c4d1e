"""Reads the ledger in threads: sums, pages, and what a tenant was charged."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.domain.errors import LedgerUnavailable, ServerOverloaded
from server.domain.money import Cost
from server.domain.threads import Threads
from server.domain.usage import Entry, Selection, Sum

if TYPE_CHECKING:
    from server.usage.database import Database

log = logging.getLogger(__name__)
_THREADS = 2  # for what callers ask, and as many for budgets, which paid calls wait for
_QUEUE = 16  # reads of callers that wait for a thread
_BUDGET_QUEUE = 1024  # reads of budgets; there is one at a time for a tenant
_SECONDS = 10.0  # for a read
Query = Callable[[Callable[[], bool]], Any]


class SqlReader:
    """Reads the database that `SqlLedger` writes to. All methods raise LedgerUnavailable and ServerOverloaded. A read
    is interrupted when its caller leaves. The first one imports the library.
    """

    def __init__(self, target: Path | str) -> None:
        self._target = target
        self._database: Database | None = None
        self._making = threading.Lock()
        self._callers, self._budgets = _Threads("usage", _QUEUE), _Threads("budgets", _BUDGET_QUEUE)
        self._is_away = False

    async def sums(self, selection: Selection, limit: int) -> list[Sum]:
        """Up to `limit` sums: newest day first, then by tenant, service and model."""
        found: list[Sum] = await self._callers.run(partial(self._read, "sums", (selection, limit)))
        return found

    async def entries(self, selection: Selection, *, before: str, limit: int) -> list[Entry]:
        """Up to `limit` entries, newest first, that are older than the entry with id `before` ("": all)."""
        found: list[Entry] = await self._callers.run(partial(self._read, "entries", (selection, before, limit)))
        return found

    async def spent(self, tenant: str, service: str | None, since: datetime) -> Cost:
        """What a tenant's calls that began at `since` or later cost: settled ones what they were charged, open ones
        what they reserved.
        """
        found: Cost = await self._budgets.run(partial(self._read, "spent", (tenant, service, since)))
        return found

    async def close(self) -> None:
        """Interrupt all reads."""
        for threads in (self._callers, self._budgets):
            threads.close()
        if self._database:
            self._database.close()

    def _read(self, query: str, arguments: tuple[object, ...], is_abandoned: Callable[[], bool]) -> Any:
        """Run the function of this name of `queries`."""
        from server.usage.database import READING, Database, explain

        try:
            with self._making:
                self._database = self._database or Database(self._target, readers=2 * _THREADS)
            with self._database.reading(is_abandoned) as connection:
                found = getattr(import_module("server.usage.queries"), query)(connection, *arguments)
        except READING as error:
            if is_abandoned():
                raise LedgerUnavailable(f"reading the ledger of usage takes longer than {_SECONDS:g} s") from None
            if not self._is_away:
                self._is_away = True
                log.warning("the ledger cannot be read: %s", explain(error))
            raise LedgerUnavailable("the ledger of usage cannot be read") from None
        if self._is_away:
            self._is_away = False
            log.warning("the ledger can be read again")
        return found


class _Threads:
    """Threads with a bounded queue. A read counts until it has really ended."""

    def __init__(self, name: str, queue: int) -> None:
        self._threads = Threads(f"ledger-{name}", _THREADS)
        self._most = _THREADS + queue
        self._reads = 0
        self._is_closed = False

    async def run(self, query: Query) -> Any:
        """What the query returns. It gets a function that says whether to give up."""
        if self._reads >= self._most or self._is_closed:
            raise ServerOverloaded("too many calls read the ledger of usage", retry_after=1.0)
        loop, has_left = asyncio.get_running_loop(), False

        def work() -> Any:
            until = time.monotonic() + _SECONDS
            return query(lambda: has_left or self._is_closed or time.monotonic() >= until)

        def ended(_: object) -> None:
            if not self._is_closed:
                loop.call_soon_threadsafe(self._leave)

        self._reads += 1
        read = self._threads.submit(work)
        read.add_done_callback(ended)
        try:
            return await asyncio.wrap_future(read)
        finally:
            has_left = True

    def _leave(self) -> None:
        self._reads -= 1

    def close(self) -> None:
        self._is_closed = True
        self._threads.close()
