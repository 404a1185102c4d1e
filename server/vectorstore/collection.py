"""One collection: what is served of it, and how it changes.

A write is a record at the end of the log, synced before it is served. A fold makes segment and log into the next
segment, while writes go on into a new log file. When files are damaged, the newest state that can be read is served.
Everything but reading `snapshot` blocks: call it on a thread. Methods may be called from several threads.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.domain.errors import CollectionBroken, CollectionNotFound, GenerationNotFound
from server.domain.models import ModelIdentity
from server.domain.rag import Document
from server.models.artefact import POINTER, sync_folder, write_durably
from server.vectorstore import layout
from server.vectorstore.damage import Damaged, keep_aside, kept_damage, refusals_as_errors
from server.vectorstore.manifest import read_manifest, write_manifest
from server.vectorstore.records import Write
from server.vectorstore.segment import (
    Content,
    Segment,
    kept_generations,
    read_segment,
    write_segment,
)
from server.vectorstore.served import Served
from server.vectorstore.snapshot import Snapshot

logger = logging.getLogger(__name__)
_TRIES = 5  # to read files while another process replaces them
_FAULTS_KEPT = 50
_LONG_WAIT_SECONDS = 60.0  # for a moment in which no other process writes


class Collection(Served):
    """The collection in `folder`: what is served of it, and how it is changed."""

    @contextmanager
    def _writing(self, wait: float = layout.LOCK_SECONDS) -> Iterator[None]:
        """Hold the lock of the only writer, and know what other processes wrote before."""
        with refusals_as_errors(self.name, self.folder), self._writer:
            if self._locked_by is not None:  # by this thread
                yield
                return
            with layout.locked(self.folder, wait=wait):
                self._locked_by = threading.get_ident()
                owner = self.owner
                try:
                    if not self.refresh() or self.owner != owner:  # another tenant has taken the name meanwhile
                        raise CollectionNotFound(self.name, [])
                    yield
                finally:
                    self._locked_by = None

    @property
    def _is_behind(self) -> bool:
        """Whether a fold has to come before the next write, which could not be read after the log as it is."""
        return not self.intact and (self._highest > self.snapshot.generation or not self.log.is_whole)

    def commit(
        self,
        removed: tuple[str, ...],
        documents: tuple[Document, ...] = (),
        passages: NDArray[np.int32] | None = None,
        vectors: NDArray[np.float32] | None = None,
        embedder: ModelIdentity | None = None,
    ) -> Snapshot:
        """Write, and serve it. Raises StorageFull, ServerOverloaded, CollectionUnreadable, CollectionNotFound, and
        EmbedderMismatch if `embedder` made the vectors and not those of the collection; nothing is written then.
        """
        while True:
            with self._writing(), self._state:
                if embedder is not None:
                    self.snapshot.check_embedder(embedder)
                if not self._is_behind:
                    if passages is None or vectors is None:
                        passages = np.empty((0, 3), np.int32)
                        vectors = self.snapshot.vectors[:0]
                    return self._append(removed, documents, passages, vectors)
            self.fold()

    def _append(
        self,
        removed: tuple[str, ...],
        documents: tuple[Document, ...],
        passages: NDArray[np.int32],
        vectors: NDArray[np.float32],
    ) -> Snapshot:
        generation = self.snapshot.generation + 1
        unfinished = layout.segment_folder(self.folder, generation)
        if os.path.lexists(unfinished):  # of a process that was killed; it would count once the pointer is beyond it
            layout.remove(unfinished)
            sync_folder(self.folder)
        write = Write(generation, datetime.now(UTC), removed, documents, passages, vectors)
        self.log.append(write)
        self._memtable.apply(write)
        self._highest = max(self._highest, generation)
        self.snapshot = Snapshot(self._memtable)
        return self.snapshot

    def fold(self) -> Snapshot:
        """Make a segment of what is served. Writes go on meanwhile. Errors are those of commit."""
        with self._folding:
            with self._writing(), self._state:
                before = self.snapshot
                generation = before.generation
                if self._highest > generation:
                    generation = self._highest + 1
                elif before.log_count:
                    self.log.begin_new_file()
                    self._catch_up()
                else:
                    if not self.intact:
                        self._point_to(generation)
                    return before
            with self._staged(generation, before.content(), "fold", before.segment) as folder, self._writing():
                if self.snapshot.segment is not before.segment:  # another process folded first
                    return self.snapshot
                return self._install(generation, folder)

    def replace(self, make: Callable[[Snapshot], Content], origin: str) -> Snapshot:
        """Make the next segment of what `make` returns for the state that is served. No process writes meanwhile.

        Errors are those of commit and of `make`.
        """
        with self._folding, self._writing(_LONG_WAIT_SECONDS):
            before = self.snapshot
            generation = max(self._highest, before.generation) + 1
            with self._staged(generation, make(before), origin) as folder:
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
            except Damaged as error:
                raise CollectionBroken(f"generation {generation} is broken: {error}") from error
            with layout.staging_folder(self.folder) as folder:
                for name in manifest.files:  # linked before the fold, which may remove the oldest segment
                    os.link(source / name, folder / name)
                new = self.fold().generation + 1
                created = datetime.now(UTC).isoformat()
                changes = {"generation": new, "created": created, "origin": f"rollback to {generation}"}
                write_manifest(folder, manifest.raw | changes)
                return self._install(new, folder)

    @contextmanager
    def _staged(self, generation: int, content: Content, origin: str, before: Segment | None = None) -> Iterator[Path]:
        with refusals_as_errors(self.name, self.folder), layout.staging_folder(self.folder) as folder:
            index = before.ann if before else None
            write_segment(folder, self.name, generation, content, origin=origin, before=index)
            yield folder

    def _install(self, generation: int, staged: Path) -> Snapshot:
        served = self.snapshot.generation
        with self._state:
            folder = layout.install(self.folder, generation, staged)
            self._stamp = layout.pointer_stamp(self.folder)
            self._found = []
            self._serve(read_segment(folder, self.name, check=False))
            self._highest, self.intact = self.snapshot.generation, True
        self._keep_what_is_lost(served, generation)
        layout.remove_obsolete(self.folder)
        return self.snapshot

    def _keep_what_is_lost(self, served: int, generation: int) -> None:
        """Set aside the segments and logs after `served` that could not be read; `generation` has taken their place."""
        logs = layout.generations_on_disk(self.folder, logs=True)
        lost = [layout.log_path(self.folder, number) for number in logs if served < number < generation]
        lost += [layout.segment_folder(self.folder, number) for number in self._lost if number < generation]
        with suppress(OSError):
            for path in lost:
                if path.exists():
                    keep_aside(path)
        self._lost = []
        self._kept = kept_damage(self.folder)

    def _point_to(self, generation: int) -> None:
        """Write the pointer again; nothing else was wrong."""
        write_durably(self.folder / POINTER, f"{generation}\n".encode())
        self._stamp, self.intact = layout.pointer_stamp(self.folder), True
        self._found = []
