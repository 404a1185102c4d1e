"""The only way an engine gets into a handle: verify the files, load aside, check, swap, free the old engine.

If that fails, the old engine stays, and the handle says why.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from server.domain.errors import ModelCheckFailed, ModelDoesNotFit, ModelUnavailable
from server.models.artefact import Artefact, open_artefact
from server.models.handle import Handle, Resident, State, explain
from server.models.loading import Loader
from server.models.store import ModelStore

log = logging.getLogger(__name__)

Commit = Callable[[], Awaitable[None]]
Find = Callable[[], tuple[Artefact | None, str]]  # the artefact, and the fault of the version that it stands in for
_ATTEMPTS = 3  # at files that another process replaces while they are read


class _Replaced(ModelUnavailable):
    """The version's files were replaced while they were read, so the engine may be made of both."""


class Swapper:
    """Swaps the engines of handles with specs."""

    def __init__(self, store: ModelStore, loader: Loader) -> None:
        self._store, self._loader = store, loader

    async def serve_current(self, handle: Handle[Any], *, evict: bool = True) -> None:
        """Load the version that `current` names. If it is damaged, the engine in memory is kept; if there is none, an
        earlier version is loaded. The caller holds the handle's lock.
        """

        def find() -> tuple[Artefact | None, str]:
            if handle.spec and not handle.spec.has_artefact:
                return None, ""
            if handle.resident:
                return open_artefact(self._store.models, handle.name), ""
            return self._store.open(handle.name)

        await self.replace(handle, find, strict=handle.resident is not None, evict=evict)

    async def replace(
        self,
        handle: Handle[Any],
        find: Find,
        *,
        strict: bool,
        evict: bool = True,
        commit: Commit | None = None,
    ) -> None:
        """Load what `find` returns. The caller holds the handle's lock.

        A version that fails its check is refused if `strict`; else it is served and the handle says so. `commit` runs
        when nothing else can fail.
        """
        old, before = handle.resident, (handle.state, handle.message)
        handle.move(State.READY if old else State.LOADING, "another version is being loaded" if old else "")
        try:
            fresh, note = await self._load(handle, find, strict=strict, evict=evict, commit=commit)
        except asyncio.CancelledError:
            handle.move(State.READY if old else State.UNLOADED)
            raise
        except Exception as error:
            handle.failures += 1
            message = explain(handle.name, error)
            if old or commit:
                log.error('model "%s": another version was not loaded: %s', handle.name, message)
            if old:
                handle.move(State.READY, f"another version was not loaded: {message}")
            elif commit:
                handle.move(*before)
            elif isinstance(error, ModelDoesNotFit):
                handle.move(State.UNLOADED, message if evict else "")  # it may fit later
            else:
                handle.fail(message)
            raise
        if note:
            log.warning('model "%s": %s', handle.name, note)
            handle.failures += 1
        handle.install(fresh, note)
        if old:
            self._loader.retire(old)

    async def _load(self, handle: Handle[Any], find: Find, **how: Any) -> tuple[Resident[Any], str]:
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._attempt(handle, find, **how)
            except _Replaced:
                log.info('model "%s": its files were replaced while they were read', handle.name)
        return await self._attempt(handle, find, **how)

    async def _attempt(
        self,
        handle: Handle[Any],
        find: Find,
        *,
        strict: bool,
        evict: bool,
        commit: Commit | None,
    ) -> tuple[Resident[Any], str]:
        """Find, load aside, check and commit; returns the engine and what the handle should say of it."""
        spec = handle.spec
        assert spec
        artefact, damage = await self._loader.on("reader", find)
        fresh: Resident[Any] | None = None
        difference = ""
        try:
            fresh = await self._loader.load(spec, artefact, evict=evict)
            if artefact:
                if handle.resident is None:
                    handle.move(State.WARMING)
                difference = await spec.check(fresh.engine, artefact)
                await self._require_same(artefact)
            if difference and strict:
                raise ModelCheckFailed(f'model "{spec.name}": {difference}', metadata={"model": spec.name})
            if commit:
                await commit()
        except BaseException as error:
            if fresh:
                await self._loader.free(fresh)
            elif artefact and isinstance(error, ModelUnavailable):
                await self._require_same(artefact)
                if damage:  # the earlier version cannot be used either: report what the operator has to repair
                    raise ModelUnavailable(damage, metadata={"model": spec.name}) from error
            raise
        if damage and artefact and not difference:
            return fresh, f"{damage}. Until then version {artefact.manifest.version} is served, the last good one"
        return fresh, difference

    async def _require_same(self, artefact: Artefact) -> None:
        """A version is replaced in one step, so an unchanged manifest means that all files belonged to it."""
        name, version = artefact.manifest.name, artefact.manifest.version
        if await self._loader.on("watcher", partial(self._store.digest_of, name, version)) != artefact.digest:
            raise _Replaced(f'the files of "{name}" are replaced again and again', metadata={"model": name})
