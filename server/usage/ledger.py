"""Writes the ledger: opening an entry waits for the disk, settling need not.

One thread writes. It takes what waits together into one transaction, so one sync of the disk serves many calls. It also
imports the database library, which takes half a second: the port need not wait for that.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from uuid import uuid4

from server.domain.errors import LedgerUnavailable, RequestIdReused
from server.domain.usage import Entry, Opened, Settled
from server.usage.watchers import Watchers

if TYPE_CHECKING:
    from server.usage.database import Database

log = logging.getLogger(__name__)
_OPEN_SECONDS = 1.5  # longest wait for an entry
_START_SECONDS = 15.0  # the same while the database is reached for the first time
_MAX_WAITING = 4096  # changes; while so many wait, nothing is opened
_BATCH = 512  # changes in a transaction
_RETRY_SECONDS = 0.25
_CLOSE_SECONDS = 5.0  # for calls to settle, and again for writing
_REFUSAL = "the ledger of usage cannot be written to, so no call that costs is started"


@dataclass(frozen=True, slots=True)
class Pulse:
    """How often a server writes its heartbeat, and after how many seconds without one it counts as dead."""

    beat_seconds: float = 2.0
    lost_seconds: float = 10.0


_PULSE = Pulse()


@dataclass(slots=True, eq=False)
class _Change:
    """A change that waits to be written: a new entry, a settled one, or one whose call was not begun.

    `future` takes Opened or an exception for a new entry, and for a settled one whether it was written.
    """

    kind: Literal["open", "settle", "void"]
    entry: Entry
    future: "asyncio.Future[Any] | None" = None


_Answer = Opened | RequestIdReused | LedgerUnavailable | Literal[True]


class SqlLedger:
    """Implements `Ledger` and `LedgerWatch` on a SQLite file or the URL of a PostgreSQL database.

    The server starts without the database. While it is `away` (cannot be written to), calls that cost are refused.
    """

    def __init__(self, target: Path | str, pulse: Pulse = _PULSE) -> None:
        self.away = False
        self._target = target
        self._pulse = pulse
        self._loop = asyncio.get_running_loop()
        # Entries that are on disk and not settled there, by id, with the future of their settlement if it waits.
        self._open: dict[str, asyncio.Future[bool] | None] = {}
        self._none_open = asyncio.Event()
        self._watchers = Watchers()
        self._is_closed = False
        # Shared with the thread, and guarded by the condition.
        self._changes: deque[_Change] = deque()
        self._changed = threading.Condition()
        self._give_up_at: float | None = None  # once closing; as the others, a time.monotonic() instant
        # The thread's own.
        self._instance = uuid4().hex
        self._database: Database | None = None
        self._was_tried = False  # whether a transaction has succeeded or failed
        self._next_beat = 0.0
        self._failed_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    @classmethod
    @asynccontextmanager
    async def running(cls, target: Path | str, pulse: Pulse = _PULSE) -> AsyncIterator[Self]:
        """Write while the body runs; on leaving, wait for calls to settle, and for the disk."""
        ledger = cls(target, pulse)
        try:
            yield ledger
        finally:
            await ledger._close()

    @property
    def waiting(self) -> int:
        """Changes that are not yet being written."""
        return len(self._changes)

    async def open(self, entry: Entry) -> Opened:
        if self._is_closed or self.away or self.waiting >= _MAX_WAITING:
            raise LedgerUnavailable(_REFUSAL)
        future: asyncio.Future[Opened] = self._loop.create_future()
        self._put(_Change("open", entry, future))
        try:
            async with asyncio.timeout(_OPEN_SECONDS if self._was_tried else _START_SECONDS):
                return await future
        except (TimeoutError, asyncio.CancelledError) as error:
            if entry.id in self._open:  # it was written at this very moment
                self._void(entry)
            if isinstance(error, TimeoutError):
                raise LedgerUnavailable(_REFUSAL) from None
            raise

    def settle(self, entry: Entry) -> asyncio.Future[bool]:
        future = self._open.get(entry.id)
        if future is None:
            future = self._loop.create_future()
            if entry.id in self._open:
                self._open[entry.id] = future
                self._put(_Change("settle", entry, future))
            else:  # it was settled before
                future.set_result(True)
        return asyncio.shield(future)

    def watch(self) -> AbstractContextManager[AsyncIterator[Settled]]:
        return self._watchers.watch()

    def end_watches(self) -> None:
        """Every watch ends after the entries that it still has to deliver."""
        self._watchers.end()

    def _put(self, change: _Change) -> None:
        with self._changed:
            self._changes.append(change)
            self._changed.notify()

    def _void(self, entry: Entry) -> None:
        self._forget(entry)
        self._put(_Change("void", entry))

    def _forget(self, entry: Entry) -> None:
        del self._open[entry.id]
        if not self._open:
            self._none_open.set()

    async def _close(self) -> None:
        self._is_closed = True
        self._none_open.clear()
        if self._open:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._none_open.wait()
            except TimeoutError:
                log.warning("%d calls were not settled in time", len(self._open))
        self._watchers.end()
        self._stop(_CLOSE_SECONDS)
        await asyncio.to_thread(self._thread.join)

    def _stop(self, seconds: float) -> None:
        """Let the thread write what waits, for so many seconds at most, and end."""
        with self._changed:
            self._give_up_at = time.monotonic() + seconds
            self._changed.notify()

    def _answer(self, answers: Sequence[tuple[_Change, _Answer]]) -> None:
        for change, answer in answers:
            if change.kind == "settle" and change.future:
                self._forget(change.entry)
                change.future.set_result(answer is True)
                if answer is True:
                    self._watchers.tell(change.entry)
            elif change.kind == "open" and change.future:
                if isinstance(answer, Opened):
                    self._open[change.entry.id] = None
                    if change.future.done():  # the call has gone
                        self._void(change.entry)
                    else:
                        change.future.set_result(answer)
                elif isinstance(answer, Exception) and not change.future.done():
                    change.future.set_exception(answer)

    # ------------------------------------------------------------ on the thread

    def _run(self) -> None:
        """Write what waits until closing has written all of it or has given up."""
        is_over = False
        while not is_over:
            batch = self._next_batch()
            is_leaving = self._give_up_at is not None and not self._changes
            try:
                self._write(batch, is_leaving=is_leaving)
                is_over = is_leaving
                if self.away:
                    self.away = False
                    log.warning("the ledger can be written to again")
            except Exception as error:
                self._failed(batch, error)
                if self._give_up_at is not None:
                    is_over = not self._changes or time.monotonic() >= self._give_up_at
            self._was_tried = True
        if self._changes:
            log.error("%d calls could not be settled in the ledger; they will be marked as lost", self.waiting)
            self._refuse(self._changes)
        if self._database:
            self._database.close()

    def _next_batch(self) -> list[_Change]:
        """What waits, once something does, a heartbeat is due, or the ledger is being closed."""
        with self._changed:
            if self.away:
                self._changed.wait_for(lambda: False, _RETRY_SECONDS)
            else:
                due = max(0.0, self._next_beat - time.monotonic())
                self._changed.wait_for(lambda: self._changes or self._give_up_at is not None, due)
            return [self._changes.popleft() for _ in range(min(_BATCH, len(self._changes)))]

    def _write(self, batch: Sequence[_Change], *, is_leaving: bool = False) -> None:
        """One transaction."""
        from server.usage import entries
        from server.usage.database import Database

        if self._database is None:
            self._database = Database(self._target)
        now, lost = time.monotonic(), 0
        is_due = now >= self._next_beat
        opens = [each for each in batch if each.kind == "open" and each.future and not each.future.done()]
        settles = [each for each in batch if each.kind == "settle"]
        voids = [each.entry.id for each in batch if each.kind == "void"]
        with self._database.writing() as connection:
            if is_due:
                entries.beat(connection, self._instance)
                # While the database was away, no server could write its heartbeat.
                if now - self._failed_at > self._pulse.lost_seconds:
                    lost = entries.reap(connection, self._pulse.lost_seconds)
            if settles:
                entries.settle_rows(connection, self._instance, [each.entry for each in settles])
            if voids:
                entries.void_rows(connection, voids)
            opened = entries.open_rows(connection, self._instance, [each.entry for each in opens])
            if is_leaving:
                lost += entries.leave(connection, self._instance)
        if is_due:
            self._next_beat = now + self._pulse.beat_seconds
        if lost:
            log.warning("%d calls had not ended when their server did; they were marked as lost", lost)
        self._hand_over([*zip(opens, opened, strict=True), *((each, True) for each in settles)])

    def _failed(self, batch: Sequence[_Change], error: Exception) -> None:
        """Refuse what was to be opened, and keep the rest for later."""
        from server.usage.database import AWAY, CommitUncertain, explain

        if not (isinstance(error, (*AWAY, CommitUncertain)) or self._database is None or not batch):
            self._write_each(batch, error)
            return
        self._failed_at = time.monotonic()
        if not self.away:
            self.away = True
            log.error("the ledger cannot be written to: %s; calls that cost are refused", explain(error))
        opens = [change for change in batch if change.kind == "open"]
        kept = [change for change in batch if change.kind != "open"]
        if isinstance(error, CommitUncertain):
            kept += [_Change("void", change.entry) for change in opens]
        with self._changed:
            self._changes.extendleft(reversed(kept))
        self._refuse(opens)

    def _write_each(self, batch: Sequence[_Change], error: Exception) -> None:
        """The database rejects an entry, which must not hold up the others."""
        log.error("the ledger's database rejects %d entries", len(batch), exc_info=error)
        if len(batch) == 1:
            self._refuse(batch)
            return
        for change in batch:
            try:
                self._write([change])
            except Exception as own:
                self._failed([change], own)

    def _refuse(self, changes: Iterable[_Change]) -> None:
        self._hand_over([(change, LedgerUnavailable(_REFUSAL)) for change in changes])

    def _hand_over(self, answers: Sequence[tuple[_Change, _Answer]]) -> None:
        self._loop.call_soon_threadsafe(self._answer, answers)
