"""The thread that writes the ledger. It takes what waits together into one transaction, so one sync of the disk serves
many calls. It also imports the database library, which takes half a second, so that the port need not wait for that.

docs/notes/ledger-writer.md says why it is no executor.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from server.domain.errors import LedgerUnavailable, RequestIdReused
from server.domain.usage import Entry, Opened

if TYPE_CHECKING:
    from server.usage.database import Database

log = logging.getLogger(__name__)
_BATCH = 512  # changes in a transaction
_RETRY_SECONDS = 0.25
REFUSAL = "the ledger of usage cannot be written to, so no call that costs is started"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How often a server writes its heartbeat, and after how many seconds without one it counts as dead."""

    beat_seconds: float = 2.0
    lost_seconds: float = 10.0


@dataclass(slots=True, eq=False)
class Change:
    """A change that waits to be written: a new entry, a settled one, or one whose call was not begun.

    `future` takes the answer of a new entry, and for a settled one whether it was written. A new entry whose future is
    cancelled before that is not written.
    """

    kind: Literal["open", "settle", "void"]
    entry: Entry
    future: "asyncio.Future[Any] | None" = None


Answer = Opened | RequestIdReused | LedgerUnavailable | Literal[True]


class Writer(threading.Thread):
    """`away` is true while the database cannot be written to; `was_tried` once a transaction has succeeded or failed.
    `hand_over` gets the answers, on this thread.
    """

    def __init__(
        self, target: Path | str, heartbeat: Heartbeat, hand_over: Callable[[Sequence[tuple[Change, Answer]]], object]
    ) -> None:
        super().__init__(name="ledger", daemon=True)
        self.away = False
        self.was_tried = False
        self._target = target
        self._heartbeat = heartbeat
        self._hand_over = hand_over
        self._instance = uuid4().hex
        self._changes: deque[Change] = deque()
        self._changed = threading.Condition()
        self._database: Database | None = None
        self._next_beat = 0.0  # as the next two, a time.monotonic() instant
        self._failed_at = float("-inf")
        self._give_up_at: float | None = None  # once stopping

    @property
    def waiting(self) -> int:
        """Changes that are not yet being written."""
        return len(self._changes)

    def put(self, change: Change) -> None:
        with self._changed:
            self._changes.append(change)
            self._changed.notify()

    def stop(self, seconds: float) -> None:
        """Write what waits, for so many seconds at most, and end."""
        with self._changed:
            self._give_up_at = time.monotonic() + seconds
            self._changed.notify()

    def run(self) -> None:
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
            self.was_tried = True
        if self._changes:
            log.error("%d calls could not be settled in the ledger; they will be marked as lost", self.waiting)
            self._refuse(self._changes)
        if self._database:
            self._database.close()

    def _next_batch(self) -> list[Change]:
        """What waits, once something does, a heartbeat is due, or the ledger is being closed."""
        with self._changed:
            if self.away:
                self._changed.wait_for(lambda: False, _RETRY_SECONDS)
            else:
                due = max(0.0, self._next_beat - time.monotonic())
                self._changed.wait_for(lambda: self._changes or self._give_up_at is not None, due)
            return [self._changes.popleft() for _ in range(min(_BATCH, len(self._changes)))]

    def _write(self, batch: Sequence[Change], *, is_leaving: bool = False) -> None:
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
                if now - self._failed_at > self._heartbeat.lost_seconds:
                    lost = entries.reap(connection, self._heartbeat.lost_seconds)
            if settles:
                entries.settle_rows(connection, self._instance, [each.entry for each in settles])
            if voids:
                entries.void_rows(connection, voids)
            opened = entries.open_rows(connection, self._instance, [each.entry for each in opens])
            if is_leaving:
                lost += entries.leave(connection, self._instance)
        if is_due:
            self._next_beat = now + self._heartbeat.beat_seconds
        if lost:
            log.warning("%d calls had not ended when their server did; they were marked as lost", lost)
        self._hand_over([*zip(opens, opened, strict=True), *((each, True) for each in settles)])

    def _failed(self, batch: Sequence[Change], error: Exception) -> None:
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
            kept += [Change("void", change.entry) for change in opens]
        with self._changed:
            self._changes.extendleft(reversed(kept))
        self._refuse(opens)

    def _write_each(self, batch: Sequence[Change], error: Exception) -> None:
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

    def _refuse(self, changes: Iterable[Change]) -> None:
        self._hand_over([(change, LedgerUnavailable(REFUSAL)) for change in changes])
