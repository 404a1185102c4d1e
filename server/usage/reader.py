"""Reads the ledger, in threads: sums, pages, and what a tenant was charged."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from server.domain.errors import LedgerUnavailable
from server.domain.money import Cost
from server.usage.ledger import Record, Selection, Sum

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.usage.database import Database

log = logging.getLogger(__name__)
T = TypeVar("T")
_READERS = 4


class SqlReader:
    """Implements `LedgerReader` on the database that `SqlLedger` writes to. The library is imported when it is used."""

    def __init__(self, target: Path | str) -> None:
        self._target = target
        self._database: Database | None = None
        self._turns = asyncio.Semaphore(_READERS)

    async def sums(self, selection: Selection, limit: int) -> list[Sum]:
        """As `LedgerReader.sums`."""

        def query(connection: "Connection") -> list[Sum]:
            from server.usage import queries

            return queries.sums(connection, selection, limit)

        return await self._read(query)

    async def records(self, selection: Selection, *, before: str, limit: int) -> list[Record]:
        """As `LedgerReader.records`."""

        def query(connection: "Connection") -> list[Record]:
            from server.usage import queries

            return queries.records(connection, selection, before, limit)

        return await self._read(query)

    async def spent(self, tenant: str, service: str | None, since: datetime) -> Cost:
        """As `LedgerReader.spent`."""

        def query(connection: "Connection") -> Cost:
            from server.usage import queries

            return queries.spent(connection, tenant, service, since)

        return await self._read(query)

    async def close(self) -> None:
        """Close all connections."""
        if self._database:
            await asyncio.to_thread(self._database.close)

    async def _read(self, query: "Callable[[Connection], T]") -> T:
        async with self._turns:  # the caller's deadline bounds the wait
            return await asyncio.to_thread(self._run, query)

    def _run(self, query: "Callable[[Connection], T]") -> T:
        from server.usage.database import READING, Database, explain

        try:
            if self._database is None:
                self._database = Database(self._target, readers=_READERS)
            with self._database.reading() as connection:
                return query(connection)
        except READING as error:
            log.warning("the ledger cannot be read: %s", explain(error))
            raise LedgerUnavailable("the ledger of usage cannot be read") from None
