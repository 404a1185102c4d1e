"""The one way into a slot: verify, load aside, check, swap, release the old after its last reader.

On failure the old stays, and the slot says why. `pool.py` says when, `residency.py` has the memory and the threads.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from server.domain.errors import ModelCheckFailed, ModelDoesNotFit, ModelUnavailable
from server.models.artefact import Artefact, open_artefact
from server.models.handle import Handle, Resident, State, explain
from server.models.residency import Residency
from server.models.specs import Found, ModelSpec
from server.models.store import ModelStore

log = logging.getLogger(__name__)

_ATTEMPTS = 3  # at files that another process replaces while they are read


@dataclass(frozen=True)
class _Fresh:
    """An engine that is not in its slot yet; what ails the version that it stands in for, and what it answers wrong."""

    resident: Resident[Any]
    artefact: Artefact | None
    damage: str
    difference: str


class _Replaced(Exception):
    """The version's files were replaced while they were read: what was read may be half of each."""


class Swapper:
    """Fills and changes the slots of models that have `plans`."""

    def __init__(self, plans: Mapping[str, ModelSpec[Any]], store: ModelStore, residency: Residency) -> None:
        self._plans, self._store, self._residency = plans, store, residency

    def find_current(self, slot: Handle[Any]) -> Found:
        """What `current` names; if that is damaged, what is in memory is better than an earlier version on disk."""
        if not self._plans[slot.name].has_artefact:
            return None, ""
        if slot.resident:
            return open_artefact(self._store.models, slot.name), ""
        return self._store.open(slot.name)

    async def replace(
        self,
        slot: Handle[Any],
        find: Callable[[], Found],
        *,
        strict: bool,
        evict: bool = True,
        commit: Callable[[], None] | None = None,
    ) -> None:
        """Put what `find` finds into the slot. The caller has the turn.

        With `strict`, what fails the check is refused; else it is served, and the slot says so, for it is better than
        nothing. `commit` comes when nothing else can fail.
        """
        old, before = slot.resident, (slot.state, slot.message)
        slot.move(State.READY if old else State.LOADING, "another version is being loaded" if old else "")
        try:
            fresh = await self._load(slot, find, evict=evict)
            try:
                note = _note(slot.name, fresh, strict=strict)
                if commit:
                    await asyncio.to_thread(commit)
            except BaseException:
                await self._residency.discard(fresh.resident)
                raise
        except asyncio.CancelledError:
            slot.move(State.READY if old else State.UNLOADED)
            raise
        except Exception as error:
            _keep(slot, error, evict=evict)
            if commit and not old:
                slot.move(*before)  # it is the other version that failed
            raise
        slot.resident = fresh.resident
        slot.loads += 1
        slot.used = time.monotonic()
        if note:
            log.warning('model "%s": %s', slot.name, note)
            slot.failures += 1
        slot.move(State.READY, note)
        if old:
            self._residency.retire(old)

    async def _load(self, slot: Handle[Any], find: Callable[[], Found], *, evict: bool) -> _Fresh:
        """Find, load aside and check, until nobody has replaced the files meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                return await self._attempt(slot, find, evict=evict)
            except _Replaced:
                log.info('model "%s": its files were replaced while they were read', slot.name)
        raise ModelUnavailable(
            f'the files of "{slot.name}" are replaced again and again', metadata={"model": slot.name}
        )

    async def _attempt(self, slot: Handle[Any], find: Callable[[], Found], *, evict: bool) -> _Fresh:
        artefact, damage = await self._residency.on(self._residency.reader, find)
        fresh: Resident[Any] | None = None
        try:
            fresh = await self._residency.load_aside(slot, artefact, evict=evict)
            difference = await self._check(slot, fresh, artefact)
            await self._require_same(artefact)
        except BaseException as error:
            if fresh:
                await self._residency.discard(fresh)
            elif isinstance(error, ModelUnavailable):
                await self._require_same(artefact)
                if damage:  # the earlier version is of no use either; what has to be mended is the current one
                    raise ModelUnavailable(damage, metadata={"model": slot.name}) from error
            raise
        return _Fresh(fresh, artefact, damage, difference)

    async def _check(self, slot: Handle[Any], fresh: Resident[Any], artefact: Artefact | None) -> str:
        if artefact is None:
            return ""
        if slot.resident is None:
            slot.move(State.WARMING)
        return await self._plans[slot.name].check(fresh.engine, artefact)

    async def _require_same(self, artefact: Artefact | None) -> None:
        """A version is replaced in one step, so the same manifest before and after means that all files are its own."""
        if artefact:
            name, version = artefact.manifest.name, artefact.manifest.version
            if await asyncio.to_thread(self._store.digest_of, name, version) != artefact.digest:
                raise _Replaced


def _note(name: str, fresh: _Fresh, *, strict: bool) -> str:
    """What the slot says of what is served now. Raises ModelCheckFailed."""
    if fresh.difference:
        if strict:
            raise ModelCheckFailed(f'model "{name}": {fresh.difference}', metadata={"model": name})
        return fresh.difference
    if fresh.damage and fresh.artefact:
        version = fresh.artefact.manifest.version
        return f"{fresh.damage}. Until then version {version} is served, the last good one"
    return ""


def _keep(slot: Handle[Any], error: Exception, *, evict: bool) -> None:
    """Loading failed: what was there stays, and the slot says why."""
    slot.failures += 1
    message = explain(slot.name, error)
    if slot.resident:
        log.error('model "%s": another version was not loaded: %s', slot.name, message)
        slot.move(State.READY, f"another version was not loaded: {message}")
    elif isinstance(error, ModelDoesNotFit):
        slot.move(State.UNLOADED, message if evict else "")  # it may fit later
    else:
        slot.fail(message)
