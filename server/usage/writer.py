"""The thread that writes the ledger. It takes what waits together into one transaction, so one sync of the disk serves
many calls. It also imports the database library, which takes half a second, so that the port need not wait for that.

While the database is away, new entries are refused. What is to be settled is kept in memory and in a file, and tried
again.

docs/notes/ledger-writer.md says why it is no executor.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from server.domain import supervision
from server.domain.errors import LedgerUnavailable
from server.usage.changes import REFUSAL, Answer, Change, Heartbeat
from server.usage.waiting import Waiting

if TYPE_CHECKING:
    from server.usage.database import Database

log = logging.getLogger(__name__)
_BATCH = 512  # changes in a transaction
_MIN_RETRY, _MAX_RETRY = 0.25, 1.0  # seconds; the delay doubles
_FAST_SECONDS = 1.0  # a slower database stays away: calls would wait for it in vain
_EXPIRED = 200  # entries that are deleted in a transaction
_EXPIRY_PAUSE, _EXPIRY_SECONDS = 0.2, 3600.0  # between two such, and until the next look


class Writer(threading.Thread):
    """`away` is true while the database cannot be written to; `was_tried` once a transaction has succeeded or failed.
    `hand_over` gets the answers, and `on_end` is called at the end, both on this thread. `folder` is for a file of
    settlements that wait; None keeps them in memory alone. Entries older than `retention` are deleted.
    """

    def __init__(
        self,
        target: Path | str,
        heartbeat: Heartbeat,
        *,
        folder: Path | None,
        retention: timedelta,
        hand_over: Callable[[Sequence[tuple[Change, Answer]]], object],
        on_end: Callable[[], object],
    ) -> None:
        super().__init__(name="ledger", daemon=True)
        self.away = False
        self.was_tried = False
        self._target = target
        self._heartbeat = heartbeat
        self._hand_over = hand_over
        self._on_end = on_end
        self._instance = uuid4().hex
        self._changes = Waiting(folder, self._instance)
        self._database: Database | None = None
        self._retention = retention
        self._next_beat = 0.0  # as the next three, a time.monotonic() instant
        self._next_expiry = 0.0
        self._failed_at = float("-inf")
        self._give_up_at: float | None = None  # once stopping
        self._retry_seconds = _MIN_RETRY

    @property
    def waiting(self) -> int:
        """Changes that are not yet being written."""
        return len(self._changes)

    def put(self, change: Change) -> None:
        self._changes.put(change)

    def stop(self, seconds: float) -> None:
        """Write what waits, for so many seconds at most, and end."""
        self._give_up_at = time.monotonic() + seconds
        self._changes.wake()

    def go_away(self, why: str) -> None:
        """Refuse new entries until a transaction succeeds."""
        if not self.away:
            self.away = True
            log.error("the ledger cannot be written to: %s; calls that cost are refused", why)

    def run(self) -> None:
        try:
            self._guarded(self._changes.take_over)
            while not self._guarded(self._run):
                time.sleep(_MAX_RETRY)
            self._refuse(self._changes.end())
            if self._database:
                self._database.close()
        finally:
            self._on_end()

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Whether it returns; a defect of ours must not end the thread."""
        try:
            work()
        except Exception:
            log.exception("the ledger's thread failed")
            supervision.restarts["ledger"] += 1
            return False
        return True

    def _run(self) -> None:
        is_over = False
        while not is_over:
            batch = self._next_batch()
            is_leaving = self._give_up_at is not None and not self._changes
            begun = time.monotonic()
            try:
                self._write(batch, is_leaving=is_leaving)
                is_over = is_leaving
                self._succeeded(time.monotonic() - begun)
                if time.monotonic() >= self._next_expiry and self._give_up_at is None:
                    self._expire()
            except Exception as error:
                self._failed(batch, error)
                if self._give_up_at is not None:
                    is_over = not self._changes or time.monotonic() >= self._give_up_at
            self.was_tried = True

    def _next_batch(self) -> list[Change]:
        """What waits, once something does, a heartbeat is due, or the ledger is being closed."""
        if not self.away:
            return self._changes.next(_BATCH, self._next_beat - time.monotonic())
        seconds, self._retry_seconds = self._retry_seconds, min(2 * self._retry_seconds, _MAX_RETRY)
        self._changes.keep_for(seconds)
        return self._changes.next(_BATCH, 0.0)

    def _write(self, batch: Sequence[Change], *, is_leaving: bool = False) -> None:
        from server.usage import entries
        from server.usage.database import Database

        if self._database is None:
            self._database = Database(self._target)
        now, lost = time.monotonic(), 0
        is_due = now >= self._next_beat or self.away  # then it shows how long a write takes
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

    def _succeeded(self, seconds: float) -> None:
        if self.away and seconds < _FAST_SECONDS:
            self.away = False
            self._retry_seconds = _MIN_RETRY
            log.warning("the ledger can be written to again")
        self._changes.is_written()

    def _expire(self) -> None:
        """Delete some old entries. It may fail, for instance without the right to delete, while others are written."""
        from server.usage import entries
        from server.usage.database import WRITING, explain

        assert self._database
        found = 0
        try:
            with self._database.writing() as connection:
                found = entries.expire(connection, datetime.now(UTC) - self._retention, _EXPIRED)
        except WRITING as error:
            log.warning("entries older than %d days cannot be deleted: %s", self._retention.days, explain(error))
        pause = _EXPIRY_PAUSE if found == _EXPIRED else _EXPIRY_SECONDS
        self._next_expiry = time.monotonic() + pause

    def _failed(self, batch: Sequence[Change], error: Exception) -> None:
        """Refuse what was to be opened, and keep the rest for later."""
        from server.usage.database import CommitUncertain, explain, is_away

        if batch and not is_away(error):
            self._write_each(batch, error)
            return
        self._failed_at = time.monotonic()
        self.go_away(explain(error))
        opens = [change for change in batch if change.kind == "open"]
        kept = [change for change in batch if change.kind != "open"]
        if isinstance(error, CommitUncertain):
            kept += [Change("void", change.entry) for change in opens]
        self._changes.keep(kept)
        self._refuse(opens)

    def _write_each(self, batch: Sequence[Change], error: Exception) -> None:
        """The database rejects an entry, which must not hold up the others."""
        from server.usage.database import explain, is_away

        if len(batch) == 1:
            change = batch[0]
            log.error("the ledger's database rejects entry %s (%s): %s", change.entry.id, change.kind, explain(error))
            self._refuse(batch)
            return
        for position, change in enumerate(batch):
            try:
                self._write([change])
            except Exception as own:
                if is_away(own):
                    self._failed(batch[position:], own)
                    return
                self._failed([change], own)

    def _refuse(self, changes: Iterable[Change]) -> None:
        self._hand_over([(change, LedgerUnavailable(REFUSAL)) for change in changes])
