"""The ledger in a database, as the event loop sees it: opening waits for the disk, settling need not."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self
from uuid import uuid4

from server.domain.errors import LedgerUnavailable
from server.usage.ledger import Opened, Opening, Settled, Settlement
from server.usage.rows import new_id, record_of
from server.usage.watchers import Watchers
from server.usage.writer import REFUSAL, Answer, Entry, Open, Pulse, Settle, Void, Writer

if TYPE_CHECKING:
    from server.usage.database import Database
    from server.usage.entries import OpenRow

log = logging.getLogger(__name__)
_OPEN_SECONDS = 1.5  # longest wait for a row
_START_SECONDS = 15.0  # the same while the database is reached for the first time
_MAX_WAITING = 4096  # entries; while so many wait, nothing is opened
_CLOSE_SECONDS = 5.0  # for calls to settle, and again for writing
_PULSE = Pulse()


class SqlLedger:
    """Implements `Ledger` and `Watching` on a SQLite file or the URL of a PostgreSQL database.

    Nothing waits for the database at the start: while it is away, what costs is refused.
    """

    def __init__(self, target: Path | str, pulse: Pulse = _PULSE) -> None:
        def connect() -> "Database":
            from server.usage.database import Database

            return Database(target)

        self._loop = asyncio.get_running_loop()
        self._writer = Writer(connect, uuid4().hex, pulse, self._hand_over)
        self._open: dict[str, OpenRow] = {}  # rows that are on the disk and not settled there
        self._settling: dict[str, asyncio.Future[bool]] = {}
        self._none_open = asyncio.Event()
        self._watchers = Watchers()
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def running(cls, target: Path | str, pulse: Pulse = _PULSE) -> AsyncIterator[Self]:
        """Write while the body runs; on leaving, wait for calls to settle, and for the disk."""
        ledger = cls(target, pulse)
        ledger._writer.start()
        try:
            yield ledger
        finally:
            await ledger._close()

    async def open(self, opening: Opening) -> Opened:
        """As `Ledger.open`."""
        if self._closed or self._writer.away or self._writer.waiting >= _MAX_WAITING:
            raise LedgerUnavailable(REFUSAL)
        entry = Open(new_id(opening.started), opening, self._loop.create_future())
        self._writer.put(entry)
        try:
            async with asyncio.timeout(_OPEN_SECONDS if self._writer.tried else _START_SECONDS):
                row = await entry.future
        except (TimeoutError, asyncio.CancelledError) as error:
            if entry.id in self._open:  # it came at this very moment
                self._drop(entry.id)
            if isinstance(error, TimeoutError):
                raise LedgerUnavailable(REFUSAL) from None
            raise
        return Opened(row.id, row.earlier)

    def settle(self, opened: Opened, settlement: Settlement) -> asyncio.Future[bool]:
        """As `Ledger.settle`."""
        future = self._settling.get(opened.id)
        if future is None:
            future = self._loop.create_future()
            if row := self._open.get(opened.id):
                self._settling[row.id] = future
                self._writer.put(Settle(row, settlement))
            else:  # it was settled before
                future.set_result(True)
        return asyncio.shield(future)  # cancelling the wait cancels nothing else

    @property
    def away(self) -> bool:
        """Whether the database cannot be written to now, so that what costs is refused."""
        return self._writer.away

    @property
    def waiting(self) -> int:
        """What is not yet being written: rows, and their ends."""
        return self._writer.waiting

    def watch(self) -> AbstractContextManager[AsyncIterator[Settled]]:
        """As `Watching.watch`."""
        return self._watchers.watch()

    def end_watches(self) -> None:
        """Every watch ends after what it has."""
        self._watchers.end()

    def _hand_over(self, answers: Sequence[tuple[Entry, Answer]]) -> None:
        """On the writer's thread."""
        self._loop.call_soon_threadsafe(partial(self._delivered, answers))

    def _delivered(self, answers: Sequence[tuple[Entry, Answer]]) -> None:
        for entry, answer in answers:
            if isinstance(entry, Open):
                self._opened(entry, answer)
            elif isinstance(entry, Settle):
                self._settled(entry, is_written=answer is True)

    def _opened(self, entry: Open, answer: Answer) -> None:
        if isinstance(answer, Exception):
            if not entry.future.done():
                entry.future.set_exception(answer)
        elif not isinstance(answer, bool):
            self._open[entry.id] = answer
            if entry.future.done():  # whoever wanted it has gone
                self._drop(entry.id)
            else:
                entry.future.set_result(answer)

    def _drop(self, row_id: str) -> None:
        self._forget(row_id)
        self._writer.put(Void(row_id))

    def _settled(self, entry: Settle, *, is_written: bool) -> None:
        self._forget(entry.row.id)
        self._settling.pop(entry.row.id).set_result(is_written)
        if is_written:
            row = entry.row
            self._watchers.tell(record_of(row.id, row.opening, entry.settlement, repeated=bool(row.repeat_of)))

    def _forget(self, row_id: str) -> None:
        del self._open[row_id]
        if not self._open:
            self._none_open.set()

    async def _close(self) -> None:
        self._closed = True
        self._none_open.clear()
        if self._open:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._none_open.wait()
            except TimeoutError:
                log.warning("%d calls were not settled in time", len(self._open))
        self._watchers.end()
        self._writer.stop(_CLOSE_SECONDS)
        await asyncio.to_thread(self._writer.join)
