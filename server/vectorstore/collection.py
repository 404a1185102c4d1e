"""One collection: what is served of it, and how it changes.

A write is a record at the end of the log, synced before it is served. A fold makes segment and log into the next
segment, while writes go on into a new log file. When files are damaged, the newest state that can be read is served.
Everything but reading `snapshot` blocks: call it on a thread. Methods may be called from several threads.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.domain.errors import CollectionBroken, GenerationNotFound, ServerOverloaded
from server.domain.rag import Document
from server.models.artefact import MANIFEST, sync_folder
from server.vectorstore import layout
from server.vectorstore.log import Log, LogPart, Write
from server.vectorstore.segment import (
    BROKEN,
    Content,
    Segment,
    kept_generations,
    read_manifest,
    read_segment,
    write_manifest,
    write_segment,
)
from server.vectorstore.snapshot import Memtable, Snapshot

logger = logging.getLogger(__name__)


class Collection:
    """The collection in `folder`. Raises CollectionBroken if no segment is whole.

    `owner`: the tenant that created it; empty if none is recorded. `faults`: what was found damaged. `intact`: the
    newest generation on disk is served, so writes can follow it. `log`: the log that is being written.
    """

    snapshot: Snapshot

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self.faults: list[str] = []
        self._folding = threading.RLock()  # acquire it before _state
        self._state = threading.RLock()  # of what is served; held briefly
        self._locked = False
        with self._state:
            self._open()

    # ------------------------------------------------------------ reading

    def _open(self) -> None:
        """Serve the current segment, or the newest older one that is whole, and the logs after it."""
        self._stamp = layout.pointer_stamp(self.folder)
        self.owner = self._read_owner()
        current = layout.read_pointer(self.folder)
        if current is None:
            self._fault("the pointer is missing or broken")
        elif not layout.segment_folder(self.folder, current).exists():
            self._fault(f"generation {current} is missing")
        segment = self._newest_whole(current)
        self._cut_torn(self._serve(segment))
        served = self.snapshot.generation
        self._highest = max([served, current or 0, *layout.generations_on_disk(self.folder, logs=True)])
        if self._highest > served:
            self._fault(f"what was written after {served}, up to {self._highest} at least, is not served")
        self.intact = segment.info.generation == current and self._highest == served

    def _read_owner(self) -> str:
        """The recorded owner. With a damaged record, only administrators may use the collection."""
        try:
            return layout.read_owner(self.folder)
        except (OSError, ValueError) as error:
            self._fault(f"its owner is unknown: {error}")
            return ""

    def _newest_whole(self, current: int | None) -> Segment:
        for generation in layout.committed_generations(self.folder, current):
            try:
                return read_segment(layout.segment_folder(self.folder, generation), self.name)
            except BROKEN as error:
                self._fault(f"generation {generation} is broken: {error}")
        raise CollectionBroken(f'collection "{self.name}" has no generation that is whole: {"; ".join(self.faults)}')

    def _cut_torn(self, part: LogPart) -> None:
        """Cut off what a killed process left at the end of the log, unless a process is writing it now."""
        if not part.torn:
            return
        name = self.log.path.name
        try:
            with layout.locked(self.folder, wait=0):
                if self.log.cut_torn(part):
                    self._fault(
                        f"{name} ended with {part.torn} bytes of an incomplete write, which were cut off: "
                        "a write that was not acknowledged, unless the file was damaged"
                    )
        except Exception as error:  # read-only, or being written: the next write cuts it off
            logger.info('collection "%s": the end of %s stays: %s', self.name, name, error)

    def _serve(self, segment: Segment) -> LogPart:
        """Serve a segment with the logs from its generation on."""
        self._memtable, self.log = Memtable(segment), Log(self.folder, segment.info.generation)
        return self._catch_up()

    def _catch_up(self) -> LogPart:
        """Apply the new writes of the logs. They are served together, after all were read."""
        new = self.log.read_new()
        for fault in new.faults:
            self._fault(fault)
        for write in new.writes:
            self._memtable.apply(write)
        self.snapshot = Snapshot(self._memtable)
        return new

    def _fault(self, what: str) -> None:
        logger.error('collection "%s": %s', self.name, what)
        self.faults.append(what)

    def refresh(self) -> bool:
        """Take over what another process wrote; false if the collection was removed."""
        with self._state:
            stamp = layout.pointer_stamp(self.folder)
            if stamp is None and not self.folder.is_dir():
                return False
            if stamp != self._stamp:
                self._open()
            else:
                self._catch_up()
            return True

    def find(self, document_id: str) -> tuple[Document, NDArray[np.int32], NDArray[np.float32]] | None:
        """A document with its passages and their vectors, as they are now; None if it is not in the collection."""
        with self._state:
            return self._memtable.find(document_id)

    @property
    def size_bytes(self) -> int:
        """On disk: the current generation's files and the log after them."""
        return self.snapshot.segment.info.size_bytes + self.log.end

    # ------------------------------------------------------------ writing

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock of the only writer, and know what other processes wrote before."""
        with layout.full_disk_as_error(self.name), self._state:
            if self._locked:
                yield
                return
            with layout.locked(self.folder):
                self._locked = True
                try:
                    self.refresh()
                    yield
                finally:
                    self._locked = False

    def commit(
        self,
        removed: tuple[str, ...],
        documents: tuple[Document, ...] = (),
        passages: NDArray[np.int32] | None = None,
        vectors: NDArray[np.float32] | None = None,
    ) -> Snapshot:
        """Write, and serve it. Raises StorageFull, ServerOverloaded and CollectionNotFound; nothing is written then."""
        if not self.intact and self._highest > self.snapshot.generation:
            self.fold()  # the newest generation on disk cannot be read: continue beyond it
        with self._writing():
            generation = self.snapshot.generation + 1
            unfinished = layout.segment_folder(self.folder, generation)
            if unfinished.exists():  # of a process that was killed; it would count once the pointer is beyond it
                layout.remove(unfinished)
                sync_folder(self.folder)
            if passages is None or vectors is None:
                passages = np.empty((0, 3), np.int32)
                vectors = self.snapshot.vectors[:0]
            write = Write(generation, datetime.now(UTC), removed, documents, passages, vectors)
            self.log.append(write)
            self._memtable.apply(write)
            self.snapshot = Snapshot(self._memtable)
            return self.snapshot

    def fold(self) -> Snapshot:
        """Make a segment of what is served. Writes go on meanwhile. Errors are those of commit."""
        with self._folding:
            with self._writing():
                before = self.snapshot
                if self.intact and not before.log_count:
                    return before
                generation = before.generation
                if self._highest > generation:
                    generation = self._highest + 1
                else:
                    self.log.begin_new_file()
                    self._catch_up()
            with self._staged(generation, before.content(), "fold", before.segment) as folder, self._writing():
                if self.snapshot.segment is not before.segment:  # another process folded first
                    return self.snapshot
                return self._install(generation, folder)

    def replace(self, content: Content, before: Snapshot, origin: str) -> Snapshot:
        """Make the next segment of `content`, which was made from `before`.

        Raises ServerOverloaded if `before` is no longer what is served, and the errors of commit.
        """
        with self._folding:
            generation = max(self._highest, before.generation) + 1
            with self._staged(generation, content, origin) as folder, self._writing():
                if self.snapshot.generation != before.generation:  # a fold meanwhile changed nothing
                    raise ServerOverloaded(f'collection "{self.name}" was written to meanwhile; try again')
                return self._install(generation, folder)

    def rollback(self, generation: int) -> Snapshot:
        """Make a new generation of the files of a kept one. The state that is served is folded before, and kept.

        Raises GenerationNotFound, CollectionBroken, and the errors of commit.
        """
        with self._folding, self._writing():
            kept = [each.generation for each in kept_generations(self.folder)]
            if generation not in kept:
                raise GenerationNotFound(self.name, generation, kept)
            source = layout.segment_folder(self.folder, generation)
            try:
                read_segment(source, self.name)
                manifest = read_manifest(source, self.name)
            except BROKEN as error:
                raise CollectionBroken(f"generation {generation} is broken: {error}") from error
            with layout.staging_folder(self.folder) as folder:
                for path in source.iterdir():  # linked before the fold, which may remove the oldest segment
                    if path.name != MANIFEST:
                        os.link(path, folder / path.name)
                new = self.fold().generation + 1
                created = datetime.now(UTC).isoformat()
                changes = {"generation": new, "created": created, "origin": f"rollback to {generation}"}
                write_manifest(folder, manifest | changes)
                return self._install(new, folder)

    @contextmanager
    def _staged(self, generation: int, content: Content, origin: str, before: Segment | None = None) -> Iterator[Path]:
        with layout.full_disk_as_error(self.name), layout.staging_folder(self.folder) as folder:
            index = before.ann if before else None
            write_segment(folder, self.name, generation, content, origin=origin, before=index)
            yield folder

    def _install(self, generation: int, staged: Path) -> Snapshot:
        folder = layout.install(self.folder, generation, staged)
        self._stamp = layout.pointer_stamp(self.folder)
        self._serve(read_segment(folder, self.name, check=False))
        self._highest, self.intact = self.snapshot.generation, True
        layout.remove_obsolete(self.folder)
        return self.snapshot
