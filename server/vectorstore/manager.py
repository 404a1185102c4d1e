"""The collections of a folder: opened at the start, kept up to date with other processes, folded when due."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
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
    EmbedderMismatch,
    GenerationNotReached,
    InvalidRequest,
    QuintetError,
    Violation,
)
from server.domain.models import ModelIdentity
from server.domain.rag import DEFAULT_COLLECTION
from server.vectorstore import layout
from server.vectorstore.admin import create_collection
from server.vectorstore.collection import Collection
from server.vectorstore.segment import Content
from server.vectorstore.snapshot import Snapshot
from server.vectorstore.threads import run_on_daemon_thread, run_to_end

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_COLLECTIONS = 64
WATCH_SECONDS = 1.0
# The memtable is searched by comparing all its vectors, and the log is read at every start, so both are kept small:
# 8192 vectors cost a search about a millisecond. A fold writes the whole collection, so a large one waits for 1/16.
FOLD_PASSAGES = 8_192
FOLD_SHARE = 16
FOLD_WRITES = 2_048
_WAITING_WRITES = 8  # to one collection
_REACH_SECONDS = 2.0  # in which writes of other processes are noticed


class CollectionManager:
    """Collections below `index`, searched and written with `embedder`. `failures` says why others cannot be opened."""

    def __init__(self, index: Path, embedder: ModelIdentity) -> None:
        self.index = index
        self.embedder = embedder
        self.open: dict[str, Collection] = {}
        self.failures: dict[str, str] = {}
        self._failed_at: dict[str, object] = {}
        self._failed_owners: dict[str, str] = {}
        self._creating = 0
        self._limiters: WeakValueDictionary[str, ConcurrencyLimiter] = WeakValueDictionary()  # of running writes
        self._fold_due = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open all collections, then watch them. A broken one fails its own calls only."""
        await asyncio.to_thread(layout.remove_abandoned, self.index)
        await self._look()
        self._fold_due.set()
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._fold_when_due())]

    async def close(self) -> None:
        """Stop watching. An unfinished fold leaves nothing behind."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ finding

    def get(self, name: str) -> Collection:
        """A collection. Raises CollectionNotFound and CollectionBroken.

        The caller's right is checked again, because a collection may have been replaced while the call waited.
        """
        call = current_or_none()
        if call is not None and call.right is not None and call.caller.grants is not None:
            call.caller.require(call.right, name, self.owners())
        if collection := self.open.get(name):
            return collection
        if failure := self.failures.get(name):
            raise CollectionBroken(failure)
        raise CollectionNotFound(name, [*self.open, *self.failures])

    def owners(self) -> dict[str, str]:
        """The recorded owners of all collections, by name; empty where none is recorded."""
        return {name: collection.owner for name, collection in self.open.items()} | self._failed_owners

    async def reached(self, name: str, generation: int, deadline: float) -> Collection:
        """The collection, once it is at this generation. Raises GenerationNotReached if that takes too long."""
        give_up = min(deadline, time.monotonic() + _REACH_SECONDS)
        while (collection := self.get(name)).snapshot.generation < generation:
            if time.monotonic() >= give_up:
                at = collection.snapshot.generation
                raise GenerationNotReached(f'collection "{name}" is at generation {at}, not yet at {generation}')
            await self.refresh(name)
            await asyncio.sleep(0.05)
        return collection

    async def writable(self, name: str) -> Collection | None:
        """The collection as other processes left it; None if it has to be made, for which there is room."""
        if name in self.open:
            await self.refresh(name)
        if name in self.open or name in self.failures:
            collection = self.get(name)
            self.check_embedder(collection.snapshot)
            return collection
        self._check_room()
        return None

    def check_embedder(self, snapshot: Snapshot) -> None:
        """Raises EmbedderMismatch if another embedder made the vectors."""
        name, theirs, ours = snapshot.index.collection, snapshot.segment.info.model, self.embedder
        if theirs != ours:
            raise EmbedderMismatch(
                f'collection "{name}" was made with embedder {theirs.name} {theirs.version}, '
                f"the server runs {ours.name} {ours.version}. Embed it again with: quintet reindex {name}"
            )

    # ------------------------------------------------------------ writing

    def only_writer(self, name: str, deadline: float) -> AbstractAsyncContextManager[None]:
        """Wait until no other call writes to the collection. Raises ServerOverloaded and DeadlineExceeded."""
        made = ConcurrencyLimiter(f'writing to collection "{name}"', 1, _WAITING_WRITES)
        return self._limiters.setdefault(name, made).take(deadline)

    async def write(self, work: Callable[[], T], deadline: float) -> T:
        """Run a write to a collection, to its end even if the caller is cancelled."""
        remaining(deadline)
        try:
            return await run_to_end(work)
        finally:
            self._fold_due.set()

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
            self._opened(collection)
        finally:
            self._creating -= 1
        return collection

    def _check_room(self) -> None:
        if len(self.open) + len(self.failures) + self._creating >= MAX_COLLECTIONS:
            raise InvalidRequest([Violation("collection", f"is new, and there are {MAX_COLLECTIONS} already")])

    # ------------------------------------------------------------ in the background

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self._look()
            except OSError as error:
                logger.error("the folder of collections cannot be read: %s", error)

    async def _look(self) -> None:
        """Open what is new, take over what was written, forget what was removed."""
        names = await asyncio.to_thread(layout.collection_names, self.index)
        for name in {*self.open, *self.failures}.difference(names):
            self.forget(name)
        for name in names:
            await self.refresh(name)

    async def refresh(self, name: str) -> None:
        """Take over what another process did to a collection."""
        folder = layout.collection_folder(self.index, name)
        try:
            if collection := self.open.get(name):
                if not await asyncio.to_thread(collection.refresh):
                    self.forget(name)
            elif self._failed_at.get(name, self) != (stamp := layout.pointer_stamp(folder)):
                self._failed_at[name] = stamp
                self._opened(await asyncio.to_thread(Collection, folder))
        except CollectionBroken as error:
            if name not in self.open:  # else what was read before is still served
                remedy = "Delete it, and add its documents again"
                if name == DEFAULT_COLLECTION:
                    remedy = f"Make it with: make train ONLY={name}"
                self.failures[name] = f"{error.message}. {remedy}"
                self._failed_owners[name] = await asyncio.to_thread(_owner_of_broken, folder)
        except OSError as error:
            logger.error('collection "%s" cannot be read: %s', name, error)

    def _opened(self, collection: Collection) -> None:
        self.open[collection.name] = collection
        self.failures.pop(collection.name, None)
        self._failed_owners.pop(collection.name, None)

    def forget(self, name: str) -> None:
        """A collection was removed."""
        for known in (self.open, self.failures, self._failed_at, self._failed_owners):
            known.pop(name, None)

    async def _fold_when_due(self) -> None:
        """Fold one collection after another."""
        while True:
            await self._fold_due.wait()
            self._fold_due.clear()
            for collection in list(self.open.values()):
                if _is_fold_due(collection):
                    try:
                        await run_on_daemon_thread(collection.fold)
                    except QuintetError as error:
                        logger.error('collection "%s" could not be folded: %s', collection.name, error.message)
                    except Exception:
                        logger.exception('collection "%s" could not be folded', collection.name)


def _owner_of_broken(folder: Path) -> str:
    try:
        return layout.read_owner(folder)
    except (OSError, ValueError) as error:
        logger.error('the owner of collection "%s" is unknown: %s', folder.name, error)
        return ""


def _is_fold_due(collection: Collection) -> bool:
    snapshot = collection.snapshot
    changed = len(snapshot.vectors) + len(snapshot.deleted_passages)
    allowed = max(FOLD_PASSAGES, len(snapshot.segment.vectors) // FOLD_SHARE)
    return not collection.intact or snapshot.log_count >= FOLD_WRITES or changed >= allowed
