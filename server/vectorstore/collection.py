"""One collection, and how it changes.

Its state has a number that grows by one with every write. A write is a record at the end of a log, synced before it is
served; a fold turns generation and logs into the next generation, while writes go on into a new log. Everything but
reading `snapshot` blocks: call it on a thread. Methods may be called from several threads.
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
from server.models.artefact import sync_folder
from server.vectorstore import layout as folders
from server.vectorstore.log import Write, append
from server.vectorstore.reader import BROKEN, Reader
from server.vectorstore.segment import (
    Content,
    DocumentRecord,
    Generation,
    Indexer,
    Origin,
    read_generation,
    read_manifest,
    write_generation,
    write_manifest,
)
from server.vectorstore.snapshot import Snapshot

log = logging.getLogger(__name__)


class Collection(Reader):
    """A collection that can be written to. `indexer` makes what finds vectors faster in each generation."""

    def __init__(self, home: Path, indexer: Indexer) -> None:
        super().__init__(home)
        self._indexer = indexer
        self._folding = threading.RLock()  # taken before _state
        self._locked = False

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the only writer, and know what the others wrote."""
        with folders.full_disk_told(self.name), self._state:
            if self._locked:
                yield
                return
            with folders.locked(self.home):
                self._locked = True
                try:
                    self.refresh()
                    yield
                finally:
                    self._locked = False

    def commit(
        self,
        removed: tuple[str, ...],
        documents: tuple[DocumentRecord, ...],
        passages: NDArray[np.int32],
        vectors: NDArray[np.float32],
    ) -> Snapshot:
        """Write, and serve it. Raises StorageFull, ServerOverloaded and CollectionNotFound; nothing is written then."""
        if not self.sound and self._highest > self.snapshot.number:
            self.fold()  # what is on disk goes on from a state that cannot be restored: begin anew beyond it
        with self._writing():
            number = self.snapshot.number + 1
            folders.remove_unfinished(self.home, number)
            path = folders.log_path(self.home, self._log)
            is_new = not path.exists()
            write = Write(number, datetime.now(UTC), removed, documents, passages, vectors)
            end = append(path, self._end, write)
            if is_new:
                sync_folder(self.home)
            self._end = end
            self._overlay.apply(write)
            self.snapshot = self._overlay.snapshot()
            return self.snapshot

    def fold(self) -> Snapshot:
        """Make a generation of what is served. Writes go on meanwhile. Errors are those of commit."""
        with self._folding:
            with self._writing():
                before = self.snapshot
                if self.sound and not before.log_count:
                    return before
                number = before.number
                if self._highest > number:
                    number = self._highest + 1
                else:  # from here on writes go into the log of the new generation
                    with folders.log_path(self.home, number).open("ab") as file:
                        os.fsync(file.fileno())
                    sync_folder(self.home)
                    self._follow()
            with self._written(number, before.content(), "fold", before.base) as folder, self._writing():
                if self.snapshot.base is not before.base:  # another process was faster
                    return self.snapshot
                return self._install(number, folder)

    def replace(self, content: Content, before: Snapshot, origin: str) -> Snapshot:
        """Make the next generation of `content`, which was made from `before`.

        Raises ServerOverloaded if that is no longer what is served, and the errors of commit.
        """
        with self._folding:
            number = max(self._highest, before.number) + 1
            with self._written(number, content, origin, None) as folder, self._writing():
                if self.snapshot.number != before.number:  # a fold meanwhile changed nothing
                    raise ServerOverloaded(f'collection "{self.name}" was written meanwhile; try again')
                return self._install(number, folder)

    def rollback(self, number: int) -> Snapshot:
        """Make a new generation of the files of a kept one; what is served is folded before, so that it is kept.

        Raises GenerationNotFound, CollectionBroken, and the errors of commit.
        """
        with self._folding, self._writing():
            kept = [generation.number for generation in self.generations()]
            if number not in kept:
                raise GenerationNotFound(self.name, number, kept)
            source = folders.generation_folder(self.home, number)
            try:
                read_generation(source, self.name)
            except BROKEN as error:
                raise CollectionBroken(f"generation {number} is broken: {error}") from error
            manifest = read_manifest(source, self.name)
            with folders.aside(self.home) as folder:
                folders.link_files(source, folder)  # before the fold, which may remove the oldest generation
                new = self.fold().number + 1
                created = datetime.now(UTC).isoformat()
                changes = {"generation": new, "created": created, "origin": f"rollback to {number}"}
                write_manifest(folder, manifest | changes)
                return self._install(new, folder)

    @contextmanager
    def _written(self, number: int, content: Content, origin: str, base: Generation | None) -> Iterator[Path]:
        with folders.full_disk_told(self.name), folders.aside(self.home) as folder:
            write_generation(folder, Origin(self.name, number, origin), content, self._indexer, base)
            yield folder

    def _install(self, number: int, written: Path) -> Snapshot:
        folder = folders.install(self.home, number, written)
        self._stamp = folders.pointer_stamp(self.home)
        self._serve(read_generation(folder, self.name, check=False))
        self._highest, self.sound = self.snapshot.number, True
        folders.tidy(self.home)
        return self.snapshot

    def generations(self) -> list[Generation]:
        """The kept generations, newest first, without those whose manifest cannot be read."""
        current = folders.pointer(self.home)
        found: list[Generation] = []
        for number in reversed(folders.numbers(self.home)):
            if current is None or number <= current:
                try:
                    found.append(read_generation(folders.generation_folder(self.home, number), self.name, check=False))
                except BROKEN as error:
                    if folders.generation_folder(self.home, number).exists():  # else a fold has just removed it
                        log.warning('collection "%s": generation %d is broken: %s', self.name, number, error)
        return found
