"""What is served of a collection: read from its files, brought up to date with other processes, and what is wrong.

When files are damaged, the newest state that can be read is served. Damage at the end of the log is set aside before
the next write.
"""

import logging
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.domain.errors import CollectionBroken, CollectionNotFound, QuintetError
from server.domain.rag import Document, GenerationInfo
from server.vectorstore import layout
from server.vectorstore.damage import Damaged, kept_damage, refusals_as_errors
from server.vectorstore.log import BELIEVED, Log, LogPart, keep_bad
from server.vectorstore.segment import (
    Segment,
    kept_generations,
    read_segment,
)
from server.vectorstore.snapshot import Memtable, Snapshot

logger = logging.getLogger(__name__)
_TRIES = 5  # to read files while another process replaces them
_FAULTS_KEPT = 50
_LONG_WAIT_SECONDS = 60.0  # for a moment in which no other process writes


class Served:
    """The collection in `folder`. Raises CollectionBroken if no segment is whole, CollectionNotFound,
    CollectionTooNew and CollectionUnreadable.

    `owner`: the tenant that created it; empty if none is recorded. `intact`: the newest generation on disk is served,
    so writes can follow it. `log`: the log that is being written.
    `fault_count`: how many faults were found since it was opened here.
    """

    snapshot: Snapshot
    log: Log

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.intact = True
        self.fault_count = 0
        self._found: list[str] = []
        self._is_opening = False
        self._kept: list[str] = []  # files of damaged data
        self._folding = threading.RLock()  # acquire it before _writer
        self._writer = threading.RLock()  # held with the lock of the only writer; acquire it before _state
        self._state = threading.RLock()  # of what is served; held briefly
        self._locked_by: int | None = None  # the thread that writes
        with refusals_as_errors(self.name, folder), self._state:
            self._open()

    @property
    def faults(self) -> list[str]:
        """What is wrong with its files now: what was found, and damaged data that are kept."""
        kept = [f"damaged data are kept in {name}, to be removed by hand" for name in self._kept]
        unreadable = len(self.snapshot.segment.unreadable)
        return [*self._found, *kept, *([f"{unreadable} documents cannot be read"] if unreadable else [])]

    def _open(self) -> None:
        """Serve the current segment, or the newest older one that is whole, and the logs after it.

        Faults are reported at the end: files that vanish while they are read may be of a collection that is removed.
        """
        self._is_opening = True
        try:
            for _ in range(_TRIES):
                self._found.clear()
                stamp = layout.pointer_stamp(self.folder)
                try:
                    self._open_at(layout.read_pointer(self.folder))
                except CollectionBroken:
                    if not self.folder.is_dir():
                        raise CollectionNotFound(self.name, []) from None
                    if stamp == layout.pointer_stamp(self.folder):
                        raise
                else:
                    self._stamp = stamp
                    if stamp == layout.pointer_stamp(self.folder):
                        break
            for what in self._found:
                self._report(what)
        finally:
            self._is_opening = False

    def _open_at(self, current: int | None) -> None:
        self.owner = self._read_owner()
        if current is None:
            self._fault("the pointer is missing or broken")
        elif not layout.segment_folder(self.folder, current).exists():
            self._fault(f"generation {current} is missing")
        segment, broken = self._newest_whole(current)
        part = self._serve(segment)
        served = self.snapshot.generation
        self._lost = [number for number in broken if number > served]
        known = [current or 0, *layout.generations_on_disk(self.folder, logs=True)]
        self._highest = max(served, *(number for number in known if number <= served + BELIEVED))
        self.intact = segment.info.generation == current
        self._settle_if_free(part)
        if self._highest > served:
            self.intact = False
            self._fault(f"what was written after {served}, up to {self._highest} at least, is not served")
        self._kept = kept_damage(self.folder)

    def _read_owner(self) -> str:
        """The recorded owner. With a damaged record, only administrators may use the collection."""
        try:
            return layout.read_owner(self.folder)
        except Damaged as error:
            remedy = f"quintet tenants grant {self.name} --owner TENANT"
            self._fault(f"its owner is unknown ({error}), so only administrators see it. Give it one: {remedy}")
            return ""

    def _newest_whole(self, current: int | None) -> tuple[Segment, list[int]]:
        """The newest segment that is whole, and the generations after it that are broken."""
        broken: list[int] = []
        for generation in layout.committed_generations(self.folder, current):
            try:
                return read_segment(layout.segment_folder(self.folder, generation), self.name), broken
            except Damaged as error:
                self._fault(f"generation {generation} is broken: {error}")
                broken.append(generation)
        raise CollectionBroken(f'collection "{self.name}" has no generation that is whole: {"; ".join(self._found)}')

    def _serve(self, segment: Segment) -> LogPart:
        """Serve a segment with the logs from its generation on."""
        memtable = Memtable(segment)
        log = Log(self.folder, segment.info.generation, segment.vectors.shape[1])
        part = self._replay(memtable, log)
        self._memtable, self.log, self.snapshot = memtable, log, Snapshot(memtable)
        return part

    def _replay(self, memtable: Memtable, log: Log) -> LogPart:
        """Apply the new writes of the logs."""
        part, faults = log.read_new()
        for fault in faults:
            self._fault(fault)
        for bad in part.bad:
            with suppress(OSError):  # a read-only or full disk
                keep_bad(bad)
        for write in part.writes:
            memtable.apply(write)
        return part

    def _catch_up(self) -> None:
        """Serve the new writes of the logs, together, after all were read."""
        part = self._replay(self._memtable, self.log)
        self.snapshot = Snapshot(self._memtable)
        if part.missing and layout.pointer_stamp(self.folder) == self._stamp:  # else another collection has its place
            self._fault(f"{self.log.path.name} lost its last {part.missing} bytes; their content is still served")
            self.intact = False
        self._settle_if_free(part)

    def _settle_if_free(self, part: LogPart) -> None:
        """Clear the end of the log, unless a process is writing to it."""
        if self._locked_by == threading.get_ident() or not (part.torn or part.alien):
            self._settle(part)
            return
        try:
            with layout.locked(self.folder, wait=0):
                self._settle(part)
        except (OSError, QuintetError) as error:  # read-only, or being written: the next write clears it
            logger.info('collection "%s": the end of %s stays: %s', self.name, self.log.path.name, error)

    def _settle(self, part: LogPart) -> None:
        """Set aside what stands at the end of the log and is no whole record; note what is lost. Call it locked."""
        self._highest = max(self._highest, self.log.last)
        if (part.torn or part.alien) and (said := self.log.cut(part)):
            self._fault(said)
            if part.lost is not None:
                self._highest = max(self._highest, part.lost, self.snapshot.generation + 1)
        if self._highest > self.snapshot.generation:
            self.intact = False

    def _fault(self, what: str) -> None:
        if what not in self._found:
            self._found = [*self._found, what][-_FAULTS_KEPT:]
            if not self._is_opening:
                self._report(what)

    def _report(self, what: str) -> None:
        logger.error('collection "%s": %s', self.name, what)
        self.fault_count += 1

    def refresh(self) -> bool:
        """Take over what another process wrote; false if the collection was removed. Errors are those of opening."""
        with refusals_as_errors(self.name, self.folder), self._state:
            stamp = layout.pointer_stamp(self.folder)
            if stamp is None and not self.folder.is_dir():
                return False
            if stamp != self._stamp:
                self._open()
            else:
                self._catch_up()
            self._kept = kept_damage(self.folder)
            return True

    def is_current(self) -> bool:
        """Whether no other process has written segments, or made another collection in its place. Waits for no lock."""
        return layout.pointer_stamp(self.folder) == self._stamp

    def find(self, document_id: str) -> tuple[Document, NDArray[np.int32], NDArray[np.float32]] | None:
        """A document with its passages and their vectors, as they are now; None if it is not in the collection."""
        with self._state:
            return self._memtable.find(document_id)

    def kept_generations(self) -> list[GenerationInfo]:
        """The generations that can be rolled back to, newest first."""
        with refusals_as_errors(self.name, self.folder):
            return kept_generations(self.folder)

    @property
    def size_bytes(self) -> int:
        """On disk: the current generation's files and the log after them."""
        return self.snapshot.segment.info.size_bytes + self.log.end
