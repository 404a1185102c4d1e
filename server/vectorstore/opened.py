"""The collections of a folder that are open: found by name, and kept up to date with other processes."""

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from server.domain.context import current_or_none
from server.domain.errors import (
    CollectionBroken,
    CollectionNotFound,
    CollectionTooNew,
    CollectionUnreadable,
    GenerationNotReached,
    QuintetError,
)
from server.domain.models import ModelIdentity
from server.domain.rag import DEFAULT_COLLECTION
from server.domain.threads import Threads
from server.vectorstore import layout
from server.vectorstore.collection import Collection
from server.vectorstore.damage import refusals_as_errors
from server.vectorstore.snapshot import Snapshot

logger = logging.getLogger(__name__)
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


class OpenCollections:
    """Collections below `index`, searched with `embedder`.

    `open`: those that are served. `failures`: of those that cannot be opened, and of open ones that cannot be brought
    up to date. A fault stays in its collection. `reading` runs what blocks for a short time.
    """

    def __init__(self, index: Path, embedder: ModelIdentity) -> None:
        self.index = index
        self.embedder = embedder
        self.open: dict[str, Collection] = {}
        self.failures: dict[str, Failure] = {}
        self.reading = Threads("collections-read", 4)
        self._watching = Threads("collections-watch")
        self._problem = ""  # why the folder cannot be read
        self._forgotten = 0  # how often a collection was
        self._failed_owners: dict[str, str] = {}

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
        # Another process may have removed the collection and made another of this name.
        if generation and name in self.open and not await self.reading.run(self.open[name].is_current):
            await self.refresh(name)
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

    async def look(self) -> None:
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
        collection = await threads.run(partial(_opened, folder))
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


def _opened(folder: Path) -> Collection | None:
    """The collection in a folder, None if there is no folder. Raises what Collection() raises."""
    with refusals_as_errors(folder.name):
        return Collection(folder) if folder.is_dir() else None
