"""Reads the ledger in threads: sums, pages, and what a tenant was charged."""

import asyncio
import logging
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.domain.errors import LedgerUnavailable
from server.domain.money import Cost
from server.domain.usage import Entry, Selection, Sum

if TYPE_CHECKING:
    from server.usage.database import Database

log = logging.getLogger(__name__)
_READERS = 4


class SqlReader:
    """Reads the database that `SqlLedger` writes to. All methods raise LedgerUnavailable. The first query imports the
    library.
    """

    def __init__(self, target: Path | str) -> None:
        self._target = target
        self._database: Database | None = None
        self._free = asyncio.Semaphore(_READERS)

    async def sums(self, selection: Selection, limit: int) -> list[Sum]:
        """Up to `limit` sums: newest day first, then by tenant, service and model."""
        found: list[Sum] = await self._read("sums", selection, limit)
        return found

    async def entries(self, selection: Selection, *, before: str, limit: int) -> list[Entry]:
        """Up to `limit` entries, newest first, that are older than the entry with id `before` ("": all)."""
        found: list[Entry] = await self._read("entries", selection, before, limit)
        return found

    async def spent(self, tenant: str, service: str | None, since: datetime) -> Cost:
        """What a tenant's calls that began at `since` or later cost: settled ones what they were charged, open ones
        what they reserved.
        """
        found: Cost = await self._read("spent", tenant, service, since)
        return found

    async def close(self) -> None:
        if self._database:
            await asyncio.to_thread(self._database.close)

    async def _read(self, query: str, *arguments: object) -> Any:
        async with self._free:  # the caller's deadline bounds the wait
            return await asyncio.to_thread(self._run, query, *arguments)

    def _run(self, query: str, *arguments: object) -> Any:
        """Run the function of this name of `queries`."""
        from server.usage.database import READING, Database, explain

        try:
            if self._database is None:
                self._database = Database(self._target, readers=_READERS)
            with self._database.reading() as connection:
                return getattr(import_module("server.usage.queries"), query)(connection, *arguments)
        except READING as error:
            log.warning("the ledger cannot be read: %s", explain(error))
            raise LedgerUnavailable("the ledger of usage cannot be read") from None
