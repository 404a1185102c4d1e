"""The collections of a folder: opened at the start, watched, written to, folded when due."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from server.domain.concurrency_limiter import ConcurrencyLimiter, remaining
from server.domain.context import current_or_none
from server.domain.errors import (
    CollectionExists,
    CollectionNotFound,
    InvalidRequest,
    QuintetError,
    Violation,
)
from server.domain.models import ModelIdentity
from server.domain.supervision import supervised
from server.domain.threads import Threads
from server.vectorstore import layout
from server.vectorstore.admin import create_collection
from server.vectorstore.collection import Collection
from server.vectorstore.opened import OpenCollections
from server.vectorstore.segment import Content
from server.vectorstore.snapshot import Snapshot

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_COLLECTIONS = 64
WATCH_SECONDS = 1.0
# The memtable is searched by comparing all its vectors, and the log is read at every start, so both are kept small:
# 8192 vectors cost a search about a millisecond. A fold writes the whole collection, so a large one waits for 1/16.
FOLD_PASSAGES = 8_192
FOLD_SHARE = 16
FOLD_WRITES = 2_048
_FOLD_SECONDS = 30.0  # after which a fold that failed is tried again
_WAITING_WRITES = 8  # to one collection


class CollectionManager(OpenCollections):
    """Open collections, and their writers. One call at a time writes to a collection."""

    def __init__(self, index: Path, embedder: ModelIdentity) -> None:
        super().__init__(index, embedder)
        self._writing = Threads("collections-write", 8)
        self._folding = Threads("collections-fold")
        self._creating = 0
        self._limiters: WeakValueDictionary[str, ConcurrencyLimiter] = WeakValueDictionary()  # of running writes
        self._fold_due = asyncio.Event()
        self._folds: dict[str, asyncio.Task[Snapshot]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open all collections, then watch them. A broken one fails its own calls only."""
        with suppress(OSError):  # look() says why the folder cannot be read
            await self._watching.run(partial(layout.remove_abandoned, self.index))
        await self.look()
        self._fold_due.set()
        self._tasks = [supervised("watching collections", self._watch), supervised("folding", self._fold_when_due)]

    async def close(self) -> None:
        """Stop watching. An unfinished fold leaves nothing behind."""
        tasks = [*self._tasks, *self._folds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ writing

    def only_writer(self, name: str, deadline: float) -> AbstractAsyncContextManager[None]:
        """Wait until no other call writes to the collection. Raises ServerOverloaded and DeadlineExceeded."""
        made = ConcurrencyLimiter(f'writing to collection "{name}"', 1, _WAITING_WRITES)
        return self._limiters.setdefault(name, made).take(deadline)

    async def writable(self, name: str) -> Collection | None:
        """As existing(); None if it has to be made, for which there is room."""
        try:
            return await self.existing(name)
        except CollectionNotFound:
            self._check_room()
            return None

    async def write(self, work: Callable[[], T], deadline: float) -> T:
        """Run a write to a collection, to its end even if the caller is cancelled."""
        remaining(deadline)
        try:
            return await self._writing.run_to_end(work)
        finally:
            self._fold_due.set()

    async def write_long(self, work: Callable[[], T]) -> T:
        """Run a write that takes long; one at a time, folds included. It goes on if the caller is cancelled."""
        return await self._folding.run(work)

    async def create(self, name: str, dimensions: int, *, deadline: float) -> Collection:
        """Make an empty collection; call it as the only writer. Raises CollectionExists and InvalidRequest."""
        if name in self.open or name in self.failures:
            raise CollectionExists(name)
        self._check_room()
        call = current_or_none()
        owner = call.caller.owner_of_new(name) if call else ""
        make = partial(create_collection, self.index, name, Content(self.embedder, dimensions), owner=owner)
        self._creating += 1
        try:
            collection = await self.write(make, deadline)
            return self.open.setdefault(name, collection)
        finally:
            self._creating -= 1

    async def fold(self, collection: Collection) -> Snapshot:
        """Fold what is served now. The fold goes on if the caller is cancelled; callers in the meantime share the next.

        Raises what Collection.fold raises.
        """
        if running := self._folds.get(collection.name):
            await asyncio.wait({running})
        task = self._folds.get(collection.name)
        if task is None:
            work = self._folding.run(collection.fold)
            task = self._folds[collection.name] = asyncio.create_task(work, context=Context())
            task.add_done_callback(partial(self._folded, collection.name))
        return await asyncio.shield(task)

    def _folded(self, name: str, task: asyncio.Task[Snapshot]) -> None:
        del self._folds[name]
        if not task.cancelled():
            task.exception()  # else it would be reported as never retrieved if no caller is left

    def _check_room(self) -> None:
        if len({*self.open, *self.failures}) + self._creating >= MAX_COLLECTIONS:
            raise InvalidRequest([Violation("collection", f"is new, and there are {MAX_COLLECTIONS} already")])

    # ------------------------------------------------------------ in the background

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self.look()

    async def _fold_when_due(self) -> None:
        """Fold one collection after another."""
        while True:
            try:
                async with asyncio.timeout(_FOLD_SECONDS):
                    await self._fold_due.wait()
            except TimeoutError:
                pass  # what failed before is tried again
            self._fold_due.clear()
            for collection in list(self.open.values()):
                if _is_fold_due(collection):
                    try:
                        await self.fold(collection)
                    except QuintetError as error:
                        logger.error('collection "%s" could not be folded: %s', collection.name, error.message)
                    except Exception:
                        logger.exception('collection "%s" could not be folded', collection.name)


def _is_fold_due(collection: Collection) -> bool:
    snapshot = collection.snapshot
    changed = len(snapshot.vectors) + len(snapshot.deleted_passages)
    allowed = max(FOLD_PASSAGES, len(snapshot.segment.vectors) // FOLD_SHARE)
    return not collection.intact or snapshot.log_count >= FOLD_WRITES or changed >= allowed
