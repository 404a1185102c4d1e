"""What is served of a collection: found on the disk, with what cannot be read reported, and followed as it changes.

Everything but reading `snapshot` blocks: call it on a thread. Methods may be called from several threads.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.domain.errors import CollectionBroken
from server.vectorstore import layout as folders
from server.vectorstore.log import LogPart, read_log
from server.vectorstore.segment import DocumentRecord, Generation, read_generation
from server.vectorstore.snapshot import Overlay, Snapshot

log = logging.getLogger(__name__)
BROKEN = (OSError, ValueError, KeyError, TypeError)  # what reading a generation that is not whole raises


class Reader:
    """A collection of the folder `home`. Raises CollectionBroken if no generation is whole.

    `faults`: what was found broken. `sound`: what is on the disk can be gone on from as it is.
    """

    snapshot: Snapshot

    def __init__(self, home: Path) -> None:
        self.home = home
        self.name = home.name
        self.faults: list[str] = []
        self._state = threading.RLock()  # what is served; held briefly
        with self._state:
            self._open()

    def _open(self) -> None:
        """Read the current generation, or the newest older one that is whole, and what the logs say after it."""
        self._stamp = folders.pointer_stamp(self.home)
        present = folders.numbers(self.home)
        current = folders.pointer(self.home)
        if current is None:
            self._fault("the pointer is missing or broken")
        elif current not in present:
            self._fault(f"generation {current} is missing")
        # A generation beyond the pointer is of a fold that was never finished; its writes are in the logs.
        base = self._newest_whole([n for n in reversed(present) if current is None or n <= current])
        self._serve(base, self._repaired_end)
        highest = max([self.snapshot.number, current or 0, *folders.numbers(self.home, logs=True)])
        if highest > self.snapshot.number:
            self._fault(f"what was written after {self.snapshot.number}, up to {highest} at least, is not served")
        self._highest = highest
        self.sound = base.number == current and highest == self.snapshot.number

    def _newest_whole(self, candidates: list[int]) -> Generation:
        for number in candidates:
            try:
                return read_generation(folders.generation_folder(self.home, number), self.name)
            except BROKEN as error:
                self._fault(f"generation {number} is broken: {error}")
        raise CollectionBroken(f'collection "{self.name}" has no generation that is whole: {"; ".join(self.faults)}')

    def _repaired_end(self, path: Path, part: LogPart) -> None:
        """Cut what a killed process left at the end of a log, unless somebody is writing it just now."""
        if not part.torn:
            return
        try:
            with folders.locked(self.home, wait=0):
                if read_log(path, part.end).torn == part.torn:
                    os.truncate(path, part.end)
                    self._fault(
                        f"{path.name} ended with {part.torn} bytes of no whole write, which were cut: "
                        "a write that was not acknowledged, unless the file was damaged"
                    )
        except Exception as error:  # read-only, or being written: the writer will cut it
            log.info('collection "%s": the end of %s stays: %s', self.name, path.name, error)

    def _serve(self, base: Generation, at_end: Callable[[Path, LogPart], None] | None = None) -> None:
        """Serve a generation with the logs from its number on, and nothing before all of them were read."""
        self._overlay, self._log, self._end = Overlay(base), base.number, 0
        self._follow(at_end)

    def _follow(self, at_end: Callable[[Path, LogPart], None] | None = None) -> None:
        """Apply what the logs have beyond what is served."""
        while True:
            path = folders.log_path(self.home, self._log)
            part = read_log(path, self._end)
            for fault in part.faults:
                self._fault(fault)
            for write in part.writes:
                if write.number > self._overlay.number + 1:
                    self._fault(f"writes {self._overlay.number + 1} to {write.number - 1} are lost")
                self._overlay.apply(write)
            self._end = part.end
            number = self._overlay.number
            if number == self._log or not folders.log_path(self.home, number).exists():
                break
            self._log, self._end = number, 0
        self.snapshot = self._overlay.snapshot()
        if at_end:
            at_end(path, part)

    def _fault(self, what: str) -> None:
        log.error('collection "%s": %s', self.name, what)
        self.faults.append(what)

    def refresh(self) -> bool:
        """Take over what another process wrote; false if the collection is gone."""
        with self._state:
            stamp = folders.pointer_stamp(self.home)
            if stamp is None and not self.home.is_dir():
                return False
            if stamp != self._stamp:
                self._open()
            else:
                self._follow()
            return True

    @property
    def log_bytes(self) -> int:
        """Size of the log that is being written."""
        return self._end

    def find(self, document_id: str) -> tuple[DocumentRecord, NDArray[np.int32], NDArray[np.float32]] | None:
        """A document with its passages and their vectors, as they are now; None if it is not there."""
        with self._state:
            return self._overlay.find(document_id)
