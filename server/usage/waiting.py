"""Changes on their way to the ledger's writer, in order. Those that must not be lost can be kept in a file, too."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.usage.changes import Change

if TYPE_CHECKING:
    from server.usage.spill import Spill

log = logging.getLogger(__name__)


class Waiting:
    """put() and wake() are for any thread, the others for the writer's. `folder` has the file; None: there is none."""

    def __init__(self, folder: Path | None, instance: str) -> None:
        self._folder = folder
        self._instance = instance
        self._changes: deque[Change] = deque()
        self._changed = threading.Condition()
        self._is_awake = False
        self._spill: Spill | None = None
        self._can_spill = True

    def __len__(self) -> int:
        return len(self._changes)

    def put(self, change: Change) -> None:
        with self._changed:
            self._changes.append(change)
            self._changed.notify()

    def wake(self) -> None:
        """next() waits no more."""
        with self._changed:
            self._is_awake = True
            self._changed.notify()

    def take_over(self) -> None:
        """Add what processes that ended have left in the folder."""
        if self._folder is None:
            return
        from server.usage.spill import Spill  # it imports the database library

        self._spill = Spill(self._folder, self._instance)
        self._return(self._spill.take_over())

    def next(self, most: int, seconds: float) -> list[Change]:
        """Up to `most` changes, once there is one or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes or self._is_awake, max(0.0, seconds))
            return [self._changes.popleft() for _ in range(min(most, len(self._changes)))]

    def keep(self, changes: Sequence[Change]) -> None:
        """Put changes back, in front, and into the file."""
        self._return(changes)
        self._spill_new()

    def keep_for(self, seconds: float) -> None:
        """Wait so long; meanwhile put into the file what arrives."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            known = len(self._changes)
            with self._changed:
                self._changed.wait_for(lambda: len(self._changes) > known, left)  # noqa: B023
            self._spill_new()

    def is_written(self) -> None:
        """What was taken is in the database: remove the file if it has nothing else."""
        if self._spill is None or self._spill.is_empty:
            return
        if not any(change.is_spilled for change in self._copy()):
            self._spill.clear()

    def end(self) -> list[Change]:
        """What is left; all that must not be lost is in the file, if it can be written to."""
        self._spill_new()
        left = self._copy()
        lost = sum(change.kind != "open" and not change.is_spilled for change in left)
        if kept := sum(change.is_spilled for change in left):
            log.error("%d settlements wait in %s; the next server there writes them", kept, self._folder)
        if lost:
            log.error("%d calls could not be settled in the ledger; they will be marked as lost", lost)
        if self._spill:
            self._spill.close()
        return left

    def _copy(self) -> list[Change]:
        with self._changed:
            return list(self._changes)

    def _return(self, changes: Sequence[Change]) -> None:
        with self._changed:
            self._changes.extendleft(reversed(changes))

    def _spill_new(self) -> None:
        new = [change for change in self._copy() if change.kind != "open" and not change.is_spilled]
        if not new or self._spill is None:
            return
        try:
            self._spill.add(new)
            self._can_spill = True
        except OSError as error:
            if self._can_spill:
                log.error("%d settlements wait in memory alone: %s: %s", len(new), self._folder, error.strerror)
            self._can_spill = False
