"""The collections of a folder: opened at the start, kept up to date with other processes, folded when due."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from server.domain.concurrency_limiter import ConcurrencyLimiter, remaining
from server.domain.context import current_or_none
from server.domain.errors import (
    CollectionBroken,
    CollectionExists,
    CollectionNotFound,
    CollectionTooNew,
    CollectionUnreadable,
    GenerationNotReached,
    InvalidRequest,
    QuintetError,
    Violation,
)
from server.domain.models import ModelIdentity
from server.domain.rag import DEFAULT_COLLECTION
from server.domain.supervision import supervised
from server.vectorstore import layout
from server.vectorstore.admin import create_collection
from server.vectorstore.collection import Collection
from server.vectorstore.segment import Content
from server.vectorstore.snapshot import Snapshot
from server.vectorstore.threads import Threads

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
_REACH_SECONDS = 2.0  # in which writes of other processes are noticed
_RETRY_SECONDS = 5.0  # after which files that the operating system refused are read again


@dataclass(frozen=True)
class Failure:
    """Why a collection cannot be opened or brought up to date. It is tried again when its files change."""

    error: QuintetError
    signature: tuple[object, ...]
    retry_at: float = math.inf  # of time.monotonic()

    def may_have_healed(self, folder: Path) -> bool:
        return time.monotonic() >= self.retry_at or layout.signature(folder) != self.signature


class CollectionManager:
    """Collections below `index`, searched and written with `embedder`.

    `open`: those that are served. `failures`: of those that cannot be opened, and of open ones that cannot be brought
    up to date. A fault stays in its collection. `reading` runs what blocks for a short time.
    """

    def __init__(self, index: Path, embedder: ModelIdentity) -> None:
        self.index = index
        self.embedder = embedder
        self.open: dict[str, Collection] = {}
        self.failures: dict[str, Failure] = {}
        self.reading = Threads("read", 4)
        self._writing = Threads("write", 8)
        self._watching = Threads("watch", 1)
        self._folding = Threads("fold", 1)
        self._problem = ""  # why the folder cannot be read
        self._forgotten = 0  # how often a collection was
        self._failed_owners: dict[str, str] = {}
        self._creating = 0
        self._limiters: WeakValueDictionary[str, ConcurrencyLimiter] = WeakValueDictionary()  # of running writes
        self._fold_due = asyncio.Event()
        self._folds: dict[str, asyncio.Task[Snapshot]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open all collections, then watch them. A broken one fails its own calls only."""
        with suppress(OSError):  # _look() says why the folder cannot be read
            await self._watching.run(partial(layout.remove_abandoned, self.index))
        await self._look()
        self._fold_due.set()
        self._tasks = [supervised("watching collections", self._watch), supervised("folding", self._fold_when_due)]

    async def close(self) -> None:
        """Stop watching. An unfinished fold leaves nothing behind."""
        tasks = [*self._tasks, *self._folds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ finding

    async def find(self, name: str) -> Collection:
        """A collection, also one that another process has just made. Raises CollectionNotFound, CollectionBroken,
        CollectionUnreadable, and what check_right() raises.
        """
        if name not in self.open:
            await self.refresh(name)
        self.check_right(name)
        if collection := self.open.get(name):
            return collection
        if failure := self.failures.get(name):
            raise failure.error.with_traceback(None)
        if self._problem:
            raise CollectionUnreadable(name, self._problem)
        raise CollectionNotFound(name, [*self.open, *self.failures])

    def check_right(self, name: str) -> None:
        """Raises CollectionNotGranted if the current call lacks the right that its method needs.

        It was checked when the call arrived; meanwhile another tenant may have taken the name.
        """
        call = current_or_none()
        if call is not None and call.right is not None and call.caller.grants is not None:
            call.caller.require(call.right, name, self.owners())

    def owners(self) -> dict[str, str]:
        """The recorded owners of all collections, by name; empty where none is recorded."""
        return {name: collection.owner for name, collection in self.open.items()} | self._failed_owners

    async def reached(self, name: str, generation: int, deadline: float) -> Collection:
        """The collection, once it is at this generation. Raises GenerationNotReached if that takes too long."""
        give_up = min(deadline, time.monotonic() + _REACH_SECONDS)
        while (collection := await self.find(name)).snapshot.generation < generation:
            if time.monotonic() >= give_up:
                at = collection.snapshot.generation
                raise GenerationNotReached(f'collection "{name}" is at generation {at}, not yet at {generation}')
            await self.refresh(name)
            await asyncio.sleep(0.05)
        return collection

    async def existing(self, name: str) -> Collection:
        """The collection as other processes left it. Raises what find raises, and EmbedderMismatch."""
        await self.refresh(name)
        collection = await self.find(name)
        self.check_embedder(collection.snapshot)
        return collection

    async def writable(self, name: str) -> Collection | None:
        """The same; None if it has to be made, for which there is room."""
        try:
            return await self.existing(name)
        except CollectionNotFound:
            self._check_room()
            return None

    def faults(self) -> dict[str, list[str]]:
        """What is wrong with each collection, sorted by name; nothing with most."""
        found = {name: self.faults_of(collection) for name, collection in self.open.copy().items()}
        broken = {name: [failure.error.message] for name, failure in self.failures.copy().items() if name not in found}
        return dict(sorted((found | broken).items()))

    def faults_of(self, collection: Collection) -> list[str]:
        """What is wrong with the files of an open collection."""
        failure = self.failures.get(collection.name)
        return [*collection.faults, failure.error.message] if failure else collection.faults

    def check_embedder(self, snapshot: Snapshot) -> None:
        """Raises EmbedderMismatch if another embedder made the vectors."""
        snapshot.check_embedder(self.embedder)

    # ------------------------------------------------------------ writing

    def only_writer(self, name: str, deadline: float) -> AbstractAsyncContextManager[None]:
        """Wait until no other call writes to the collection. Raises ServerOverloaded and DeadlineExceeded."""
        made = ConcurrencyLimiter(f'writing to collection "{name}"', 1, _WAITING_WRITES)
        return self._limiters.setdefault(name, made).take(deadline)

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
            await self._look()

    async def _look(self) -> None:
        """Open what is new, take over what was written, forget what was removed."""
        try:
            names = await self._watching.run(partial(layout.collection_names, self.index))
        except OSError as error:
            if not self._problem:
                logger.error("the folder of collections cannot be read: %s", error)
            self._problem = f"the folder of collections: {(error.strerror or 'cannot be read').lower()}"
            return
        self._problem = ""
        for name in {*self.open, *self.failures}.difference(names):
            self.forget(name)
        for name in names:
            await self.refresh(name, self._watching)

    async def refresh(self, name: str, threads: Threads | None = None) -> None:
        """Take over what another process did to a collection. What is wrong is in `failures` then."""
        threads, folder = threads or self.reading, layout.collection_folder(self.index, name)
        collection, failure = self.open.get(name), self.failures.get(name)
        if failure and not await threads.run(partial(failure.may_have_healed, folder)):
            return
        signature: tuple[object, ...] = ()
        try:
            if collection is not None:
                if not await threads.run(collection.refresh):
                    self.forget(name)
            else:
                signature = await threads.run(partial(layout.signature, folder))
                await self._open(name, folder, threads)
            self._healed(name)
        except CollectionNotFound:
            self.forget(name)
        except QuintetError as error:
            await self._fail(folder, error, signature or await threads.run(partial(layout.signature, folder)))
        except Exception:
            logger.exception('collection "%s" cannot be read', name)
            unexpected = CollectionUnreadable(name, "an unexpected error, which the server's log describes")
            await self._fail(folder, unexpected, signature)

    async def _open(self, name: str, folder: Path, threads: Threads) -> None:
        forgotten = self._forgotten
        collection = await threads.run(lambda: Collection(folder) if folder.is_dir() else None)
        if collection is None or (self._forgotten != forgotten and not await threads.run(collection.refresh)):
            return  # it was removed
        self.open.setdefault(name, collection)

    async def _fail(self, folder: Path, error: QuintetError, signature: tuple[object, ...]) -> None:
        name = folder.name
        before = self.failures.get(name)
        if type(error) is CollectionBroken and name not in self.open:
            remedy = "Delete it, and add its documents again"
            if name == DEFAULT_COLLECTION:
                remedy = f"Make it with: make train ONLY={name}"
            error = CollectionBroken(f"{error.message}. {remedy}")
        if before is None or before.error.message != error.message:
            logger.error("%s", error.message)
        if name not in self.open:
            self._failed_owners[name] = await self.reading.run(partial(layout.owner_of_broken, folder))
        will_end = not isinstance(error, CollectionBroken | CollectionTooNew)
        self.failures[name] = Failure(error, signature, time.monotonic() + _RETRY_SECONDS if will_end else math.inf)

    def forget(self, name: str) -> None:
        """A collection was removed."""
        self._forgotten += 1
        self.open.pop(name, None)
        self._healed(name)

    def _healed(self, name: str) -> None:
        self.failures.pop(name, None)
        self._failed_owners.pop(name, None)

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
