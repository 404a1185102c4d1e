"""Models follow what is published, and heal, each by itself: the fault of one delays no other.

A new or repaired version on disk, where `mirroring.py` puts those of a registry, is noticed within 2 s. A model that
failed is tried again after 5 s, 10 s and so on up to 5 minutes.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from server.domain.supervision import supervised
from server.models.handle import Handle, State, Wanted, explain
from server.models.loading import Loader
from server.models.mirroring import Mirror
from server.models.spec import OutOfProcess
from server.models.store import Mark, ModelStore
from server.models.swap import Swapper

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between looks at the disk
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 5.0, 300.0


class Follower:
    """Follows the models of `handles`, which have a spec each, from start() to stop()."""

    def __init__(
        self, handles: Mapping[str, Handle[Any]], store: ModelStore, loader: Loader, swapper: Swapper, mirror: Mirror
    ) -> None:
        self.needed: set[Handle[Any]] = set()  # something is made of them
        self._handles, self._store, self._loader, self._swapper = handles, store, loader, swapper
        self._mirror = mirror
        self._marks: dict[str, Mark | None] = {}
        self._noted: dict[str, tuple[object, ...]] = {}  # for which `wanted` was found
        self._retries: dict[str, tuple[float, float]] = {}  # delay, and time.monotonic() of the next one
        self._following: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow. Changes from now on are noticed."""
        self._marks = await self._look()
        self._task = supervised("models on disk", self._follow_disk)
        self._mirror.start(self._versioned, self.is_here)

    async def stop(self) -> None:
        await self._mirror.stop()
        tasks = [*([self._task] if self._task else []), *self._following.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def is_here(self, name: str) -> bool:
        """Whether a version was on disk at the latest look."""
        return self._marks.get(name) is not None

    def warnings(self) -> list[str]:
        """What an operator should know although models serve."""
        found = [self._mirror.away] if self._mirror.away else []
        return found + [
            f'model "{name}": version {wanted.version} is not served: {wanted.why}'
            for name, handle in sorted(self._handles.items())
            if (wanted := handle.wanted)
        ]

    # ------------------------------------------------------------ the disk

    @property
    def _versioned(self) -> list[str]:
        return [name for name, handle in self._handles.items() if handle.spec and handle.spec.has_artefact]

    async def _look(self) -> dict[str, Mark | None]:
        names = self._versioned
        return await self._loader.on("watcher", lambda: {name: self._store.mark(name) for name in names})

    async def _follow_disk(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            seen = await self._look()
            for name, handle in self._handles.items():
                is_changed = seen.get(name) != self._marks.get(name)
                is_lost = isinstance(handle.loaded, OutOfProcess) and handle.loaded.is_lost
                if (is_changed or is_lost or self._is_due(handle)) and name not in self._following:
                    self._marks[name] = seen.get(name)  # what changes while it is followed is followed after that
                    self._following[name] = task = asyncio.create_task(self.follow(name))
                    task.add_done_callback(partial(self._forget, name))
            for name in self._versioned:
                await self._note_wanted(self._handles[name], seen[name])

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        del self._following[name]
        if not task.cancelled() and (error := task.exception()):
            log.error("model %s could not be followed", name, exc_info=error)

    def _is_waiting(self, handle: Handle[Any]) -> bool:
        """Whether something is to be made of it, for which it did not fit into memory."""
        return handle.state is State.UNLOADED and bool(handle.message) and handle in self.needed

    def _is_due(self, handle: Handle[Any]) -> bool:
        """Whether a model that could not be loaded is to be tried again now."""
        if handle.state is not State.FAILED and not self._is_waiting(handle):
            if handle.state in (State.READY, State.UNLOADED):
                self._retries.pop(handle.name, None)
            return False
        now = time.monotonic()
        delay, due = self._retries.setdefault(handle.name, (_FIRST_RETRY_SECONDS, now + _FIRST_RETRY_SECONDS))
        if now < due:
            return False
        delay = min(2 * delay, _LONGEST_RETRY_SECONDS)
        self._retries[handle.name] = (delay, now + delay)
        return True

    async def follow(self, name: str) -> None:
        """Serve what `current` names if that is another version or other files than what is served, or if the engine's
        process is lost.
        """
        handle = self._handles[name]
        async with handle.lock:
            if handle.state is State.UNLOADED and not self._is_waiting(handle):
                return
            try:
                if isinstance(handle.loaded, OutOfProcess) and handle.loaded.is_lost:
                    await self._loader.evict(handle)
                served = handle.description.identity if handle.description else None
                if served is None or (served.version, served.digest) != await self._current(name):
                    await self._swapper.serve_current(handle)
            except Exception as error:
                explain(name, error)  # the handle says why, and the old engine stays

    async def _current(self, name: str) -> tuple[str, str]:
        return await self._loader.on("watcher", partial(self._store.digest, name))

    async def _note_wanted(self, handle: Handle[Any], mark: Mark | None) -> None:
        """Let the handle say which version should be served, if it is another one."""
        name, refused = handle.name, self._mirror.refused.get(handle.name)
        if self._noted.get(name) == (mark, handle.revision, refused):
            return
        wanted: Wanted | None = None
        version, digest = await self._current(name)
        served = handle.description.identity if handle.description else None
        is_other = handle.failed if served is None else (served.version, served.digest) != (version, digest)
        if refused:
            wanted = Wanted(refused.version, refused.message)
        elif version and is_other:
            wanted = Wanted(version, handle.message)
        handle.want(wanted)
        self._noted[name] = (mark, handle.revision, refused)
