"""The collections that are open: found at the start, followed when another process writes, folded when due."""

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from server.domain.errors import CollectionBroken, CollectionNotFound, QuintetError
from server.vectorstore.admin import DEMO
from server.vectorstore.ann_index import build_index
from server.vectorstore.collection import Collection
from server.vectorstore.layout import collection_home, collection_names, pointer_stamp, remove_remains
from server.vectorstore.snapshot import Snapshot

log = logging.getLogger(__name__)
T = TypeVar("T")

WATCH_SECONDS = 1.0
# The log is searched by comparing all its vectors and is read again at every start, so it is kept short: 8192 vectors
# cost a search about a millisecond. Folding writes the whole collection, so a large one waits for a sixteenth of it.
FOLD_PASSAGES = 8_192
FOLD_SHARE = 16
FOLD_WRITES = 2_048


class CollectionManager:
    """Collections below `index`, and why others could not be opened."""

    def __init__(self, index: Path) -> None:
        self.index = index
        self.open: dict[str, Collection] = {}
        self.failures: dict[str, str] = {}
        self._failed_at: dict[str, object] = {}
        self._due = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open all collections, and keep up from now on. One that is broken fails its own calls and no others."""
        await asyncio.to_thread(remove_remains, self.index)
        await self._look()
        self._due.set()
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._fold_when_due())]

    async def close(self) -> None:
        """Keep up no longer. A fold that runs is given up: what it has not finished leaves no trace."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def known(self, name: str) -> Collection:
        """A collection. Raises CollectionNotFound and CollectionBroken."""
        if collection := self.open.get(name):
            return collection
        if failure := self.failures.get(name):
            raise CollectionBroken(failure)
        raise self.not_found(name)

    def not_found(self, name: str) -> CollectionNotFound:
        """What to raise for a collection that is not there."""
        return CollectionNotFound(name, [*self.open, *self.failures])

    def adopt(self, collection: Collection) -> None:
        """A collection was made."""
        self.open[collection.name] = collection
        self.failures.pop(collection.name, None)

    def forget(self, name: str) -> None:
        """A collection was removed."""
        for known in (self.open, self.failures, self._failed_at):
            known.pop(name, None)

    def written(self) -> None:
        """A collection has grown: perhaps it is to be folded."""
        self._due.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self._look()
            except OSError as error:
                log.error("the collections cannot be looked at: %s", error)

    async def _look(self) -> None:
        """Open what is new, follow what was written, forget what is gone."""
        names = await asyncio.to_thread(collection_names, self.index)
        for name in {*self.open, *self.failures}.difference(names):
            self.forget(name)
        for name in names:
            await self.follow(name)

    async def follow(self, name: str) -> None:
        """Take over what another process did to a collection."""
        try:
            if collection := self.open.get(name):
                if not await asyncio.to_thread(collection.refresh):
                    self.forget(name)
            elif self._failed_at.get(name, self) != (stamp := pointer_stamp(collection_home(self.index, name))):
                self._failed_at[name] = stamp
                self.adopt(await asyncio.to_thread(Collection, self.index / name, build_index))
        except CollectionBroken as error:
            if name not in self.open:  # else what was read before is still served
                self.failures[name] = f"{error.message}. {remedy(name)}"
        except OSError as error:
            log.error('collection "%s" cannot be read: %s', name, error)

    async def _fold_when_due(self) -> None:
        """Fold one collection after another."""
        while True:
            await self._due.wait()
            self._due.clear()
            for collection in list(self.open.values()):
                if _is_due(collection):
                    try:
                        await on_a_thread_of_its_own(collection.fold)
                    except QuintetError as error:
                        log.error('collection "%s" could not be folded: %s', collection.name, error.message)
                    except Exception:
                        log.exception('collection "%s" could not be folded', collection.name)


def _is_due(collection: Collection) -> bool:
    snapshot: Snapshot = collection.snapshot
    weight = len(snapshot.vectors) + len(snapshot.gone_passages)
    allowed = max(FOLD_PASSAGES, len(snapshot.base.vectors) // FOLD_SHARE)
    return not collection.sound or snapshot.log_count >= FOLD_WRITES or weight >= allowed


def remedy(name: str) -> str:
    """How an operator brings a collection back."""
    if name == DEMO:
        return f"Make it with: make train ONLY={DEMO}"
    return "Delete it, and add its documents again"


async def on_a_thread_of_its_own(work: Callable[[], T]) -> T:
    """Run long work on a daemon thread, which the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only if T has it

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, daemon=True, name="fold").start()
    return await future
