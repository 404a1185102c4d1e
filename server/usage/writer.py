"""The one thread that writes. What waits is taken together into one transaction, so a sync of the disk serves many.

Nothing here imports the database library before the thread runs: half a second that need not delay the port.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

from server.domain.errors import LedgerUnavailable, RequestIdReused
from server.usage.ledger import Opening, Settlement

if TYPE_CHECKING:
    from server.usage.database import Database
    from server.usage.entries import OpenRow

log = logging.getLogger(__name__)
_BATCH = 512
_RETRY_SECONDS = 0.25
REFUSAL = "the ledger of usage cannot be written to, so nothing that costs is begun"


@dataclass(slots=True, eq=False)
class Open:
    """Asks for a row. If the future is cancelled before it is written, it is not written."""

    id: str
    opening: Opening
    future: "asyncio.Future[OpenRow]"


@dataclass(slots=True, eq=False)
class Settle:
    """Ends a row."""

    row: "OpenRow"
    settlement: Settlement


@dataclass(slots=True, eq=False)
class Void:
    """Ends a row, if there is one, whose call was not begun."""

    id: str


Entry = Open | Settle | Void
# Of Open: the row, or why there is none. Of Settle: true, or false if it was given up.
Answer = Union["OpenRow", RequestIdReused, LedgerUnavailable, bool]
Deliver = Callable[[Sequence[tuple[Entry, Answer]]], None]  # called on the writer's thread


@dataclass(frozen=True, slots=True)
class Pulse:
    """How often a server says that it lives, and after how many seconds of silence it is taken for dead."""

    beat_seconds: float = 2.0
    lost_seconds: float = 10.0


class Writer(threading.Thread):
    """`away` is true while the database cannot be written to: whoever wants to open a row then need not wait.
    `tried` becomes true with the first transaction, whatever came of it: the libraries are imported.
    """

    def __init__(self, connect: "Callable[[], Database]", instance: str, pulse: Pulse, deliver: Deliver) -> None:
        super().__init__(name="ledger", daemon=True)
        self.away = False
        self.tried = False
        self._connect = connect
        self._instance = instance
        self._pulse = pulse
        self._deliver = deliver
        self._entries: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._end: float | None = None  # when to give up, once stopping
        self._next_beat = 0.0  # time.monotonic(), as the next one
        self._failed_at = float("-inf")
        self._database: Database | None = None

    def put(self, entry: Entry) -> None:
        """Queue an entry. Whoever puts bounds their number, by `waiting`."""
        with self._changed:
            self._entries.append(entry)
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Entries that are not yet being written."""
        return len(self._entries)

    def stop(self, seconds: float) -> None:
        """Write what waits and end, after so many seconds in any case."""
        with self._changed:
            self._end = time.monotonic() + seconds
            self._changed.notify()

    def run(self) -> None:
        """Until stop()."""
        is_over = False
        while not is_over:
            batch = self._take()
            leaves = self._end is not None and not self._entries
            try:
                self._write(batch, leaves=leaves)
                is_over = leaves
                if self.away:
                    self.away = False
                    log.warning("the ledger can be written to again")
            except Exception as error:
                self._failed(batch, error)
                is_over = self._end is not None and (not self._entries or time.monotonic() >= self._end)
            self.tried = True
        self._give_up()

    def _take(self) -> list[Entry]:
        """What waits, once something does, a heartbeat is due, or the end has come."""
        with self._changed:
            if self.away:
                self._changed.wait_for(lambda: False, _RETRY_SECONDS)
            else:
                due = max(0.0, self._next_beat - time.monotonic())
                self._changed.wait_for(lambda: self._entries or self._end is not None, due)
            return [self._entries.popleft() for _ in range(min(_BATCH, len(self._entries)))]

    def _write(self, batch: Sequence[Entry], *, leaves: bool = False) -> None:
        from server.usage import entries, instances

        if self._database is None:
            self._database = self._connect()
        now, lost = time.monotonic(), 0
        opens = [entry for entry in batch if isinstance(entry, Open) and not entry.future.done()]
        settles = [entry for entry in batch if isinstance(entry, Settle)]
        voids = [entry.id for entry in batch if isinstance(entry, Void)]
        with self._database.writing() as connection:
            if now >= self._next_beat:
                instances.beat(connection, self._instance)
                # Where the database was away, nobody could say that he lives.
                if now - self._failed_at > self._pulse.lost_seconds:
                    lost = instances.reap(connection, self._pulse.lost_seconds)
            if settles:
                entries.settle_rows(connection, self._instance, [(each.row, each.settlement) for each in settles])
            if voids:
                entries.void_rows(connection, voids)
            answers = entries.open_rows(connection, self._instance, [(each.id, each.opening) for each in opens])
            if leaves:
                lost += instances.leave(connection, self._instance)
        if now >= self._next_beat:
            self._next_beat = now + self._pulse.beat_seconds
        if lost:
            log.warning("%d calls had not ended when their server did; they were marked as lost", lost)
        self._deliver([*zip(opens, answers, strict=True), *((each, True) for each in settles)])

    def _failed(self, batch: Sequence[Entry], error: Exception) -> None:
        """Refuse what wanted to be opened, and keep the rest for later."""
        from server.usage.database import AWAY, CommitUncertain, explain

        if not (isinstance(error, (*AWAY, CommitUncertain)) or self._database is None or not batch):
            self._sift(batch, error)
            return
        self._failed_at = time.monotonic()
        if not self.away:
            self.away = True
            log.error("the ledger cannot be written to: %s; calls that cost are refused", explain(error))
        opens = [entry for entry in batch if isinstance(entry, Open)]
        kept: list[Entry] = [entry for entry in batch if not isinstance(entry, Open)]
        if isinstance(error, CommitUncertain):
            kept += [Void(entry.id) for entry in opens]
        with self._changed:
            self._entries.extendleft(reversed(kept))
        self._deliver([(entry, LedgerUnavailable(REFUSAL)) for entry in opens])

    def _sift(self, batch: Sequence[Entry], error: Exception) -> None:
        """The database is there and refuses something: what is at fault must not hold up the others."""
        log.error("the ledger refuses %d entries", len(batch), exc_info=error)
        if len(batch) == 1:
            self._deliver([(batch[0], LedgerUnavailable(REFUSAL) if isinstance(batch[0], Open) else False)])
            return
        for entry in batch:
            try:
                self._write([entry])
            except Exception as own:
                self._failed([entry], own)

    def _give_up(self) -> None:
        if self._entries:
            log.error("%d calls could not be settled in the ledger; their rows will be marked as lost", self.waiting)
            self._deliver(
                [(each, LedgerUnavailable(REFUSAL) if isinstance(each, Open) else False) for each in self._entries]
            )
        if self._database:
            self._database.close()
