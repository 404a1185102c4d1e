"""The pool: which models are in memory. It loads, evicts and replaces them within a memory budget.

One way leads into a slot, whoever asks for it: verify, load aside, check, swap, release the old after its last
reader. On failure the old stays, and the slot says why. `residency.py` has the memory and the threads.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from server.errors import ModelCheckFailed, ModelDoesNotFit, ModelLoading, ModelUnavailable
from server.runtime.artefact import Artefact, open_artefact
from server.runtime.models import ModelSlot, Resident, State, explain
from server.runtime.plans import Found, Plan, prepare_all
from server.runtime.registry import Registry
from server.runtime.residency import Residency
from server.runtime.store import CURRENT

log = logging.getLogger(__name__)
T = TypeVar("T")

_ANSWER_SECONDS = 0.2  # kept from a waiting call's deadline, so that MODEL_LOADING still reaches the caller
_USUAL_SECONDS = 2.0  # of a load that was never timed


class Pool:
    """The slots of all models with plans. Use `running`."""

    def __init__(self, registry: Registry, budget: int | None) -> None:
        self.on_change: Callable[[], None] = lambda: None  # called after every change of a slot
        self.registry = registry
        self.store = registry.store
        self.plans: dict[str, Plan[Any]] = {}
        self.slots: dict[str, ModelSlot[Any]] = {}
        self.residency = Residency(self.slots, self.plans, self.store, budget)
        self._demands: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def running(cls, registry: Registry, budget: int | None) -> AsyncIterator["Pool"]:
        """An empty pool. On leaving, loading is given up."""
        pool = cls(registry, budget)
        try:
            yield pool
        finally:
            for task in pool._tasks:
                task.cancel()
            await asyncio.gather(*pool._tasks, return_exceptions=True)
            pool.residency.close()

    def add(self, plan: Plan[T]) -> ModelSlot[T]:
        """A slot for a model; nothing is loaded yet."""
        slot: ModelSlot[T] = ModelSlot(plan.name, self._changed, self._demand, preload=plan.preload)
        self.plans[plan.name] = plan
        self.slots[plan.name] = slot
        return slot

    def _changed(self) -> None:
        self.on_change()

    async def preload(self) -> None:
        """Load what is to be in memory from the start, as far as the budget goes: nothing is evicted for it."""
        wanted = {name: plan for name, plan in self.plans.items() if plan.preload}
        marks = await asyncio.to_thread(self.store.marks, wanted)
        there = [plan for name, plan in wanted.items() if marks[name] or not plan.has_artefact]

        async def load(*, out_of_process: bool) -> None:
            chosen = [self.slots[name] for name, plan in wanted.items() if plan.out_of_process is out_of_process]
            await asyncio.gather(*(self._load(slot, evict=False) for slot in chosen), return_exceptions=True)

        outside = self._start(load(out_of_process=True))  # they start while libraries are imported here
        await self.residency.on(self.residency.loader, partial(prepare_all, there))
        await load(out_of_process=False)
        await outside
        await self.residency.step_back()

    # ------------------------------------------------------------ what operators ask for

    async def load(self, name: str, deadline: float) -> None:
        """Bring it into memory if it is not there; a failed one is tried again. Errors are those of slot.use()."""
        slot = self.slots[name]
        if slot.resident is None:
            await self._demand(slot, deadline)

    async def unload(self, name: str) -> None:
        """Take it out of memory after its last reader."""
        slot = self.slots[name]

        async def unload() -> None:
            async with slot.turn:
                await self.residency.evict(slot)

        await self._to_its_end(unload())

    async def reload(self, name: str) -> None:
        """Read the alias and all files again, and serve what they are now. Raises what keeps it from that."""
        slot = self.slots[name]

        async def reload() -> None:
            if self.plans[name].has_artefact:
                await asyncio.to_thread(self.registry.sync, name)
            async with slot.turn:
                await self._replace(slot, partial(self._find, slot), strict=slot.resident is not None)

        await self._to_its_end(reload())

    async def set_alias(self, name: str, alias: str, target: str, *, force: bool = False) -> None:
        """Move an alias. `current` moves only to what was verified, loaded, checked (unless forced) and is served then.

        Raises ModelVersionNotFound, RegistryFailed, StorageFull, and what loading raises.
        """
        slot = self.slots[name]

        async def move() -> None:
            version = await asyncio.to_thread(self.registry.resolve, name, target)
            commit = partial(self.registry.point, name, alias, version)
            if alias == CURRENT:

                def find() -> Found:
                    return self.store.open_version(name, version), ""

                await self._replace(slot, find, strict=not force, commit=commit)
            else:
                await self.residency.on(self.residency.reader, partial(self.store.open_version, name, version))
                await asyncio.to_thread(commit)
                slot.move(slot.state, slot.message)
            log.info('model "%s": %s is version %s now', name, alias, version)

        async def take_turn() -> None:
            async with slot.turn:
                await move()

        await self._to_its_end(take_turn())

    def follow_soon(self, names: Iterable[str]) -> None:
        """Begin to follow several; none waits for another's loading."""
        for name in names:
            self._start(self.follow(name))

    async def follow(self, name: str) -> None:
        """Serve what `current` names if that is another version, or other files, than what is served."""
        slot = self.slots[name]
        async with slot.turn:
            if slot.state is State.UNLOADED or not self.plans[name].has_artefact:
                return
            try:
                if slot.resident is None or not await asyncio.to_thread(self._is_current, slot):
                    await self._replace(slot, partial(self._find, slot), strict=slot.resident is not None)
            except Exception as error:
                explain(name, error)  # the slot says why, and what was served still is

    # ------------------------------------------------------------ the one way into a slot

    async def _demand(self, slot: ModelSlot[Any], deadline: float) -> None:
        """Wait for one load that all callers share. Raises ModelLoading if it will not end before the deadline."""
        task = self._demands.get(slot.name)
        if task is None:
            task = self._demands[slot.name] = self._start(self._load(slot))
            task.add_done_callback(lambda _: self._demands.pop(slot.name))
        patience = deadline - time.monotonic() - _ANSWER_SECONDS
        done, _ = await asyncio.wait({task}, timeout=max(0.0, patience))
        if not done:
            raise ModelLoading(slot.message or f'model "{slot.name}" is loading', retry_after=_USUAL_SECONDS)
        task.result()

    async def _load(self, slot: ModelSlot[Any], *, evict: bool = True) -> None:
        async with slot.turn:
            if slot.resident is None:
                await self._replace(slot, partial(self._find, slot), strict=False, evict=evict)

    def _find(self, slot: ModelSlot[Any]) -> Found:
        """What `current` names; if that is damaged, what is in memory is better than an earlier version on disk."""
        if not self.plans[slot.name].has_artefact:
            return None, ""
        if slot.resident:
            return open_artefact(self.store.models, slot.name), ""
        return self.store.open(slot.name)

    async def _replace(
        self,
        slot: ModelSlot[Any],
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
            artefact, damage = await self.residency.on(self.residency.reader, find)
            fresh = await self._load_aside(slot, artefact, damage, evict=evict)
            note = ""
            if damage and artefact:
                note = f"{damage}. Until then version {artefact.manifest.version} is served, the last good one"
            try:
                if artefact and (difference := await self._check(slot, fresh, artefact)):
                    if strict:
                        raise ModelCheckFailed(f'model "{slot.name}": {difference}', metadata={"model": slot.name})
                    note = difference
                if commit:
                    await asyncio.to_thread(commit)
            except BaseException:
                await self.residency.discard(fresh)
                raise
        except asyncio.CancelledError:
            slot.move(State.READY if old else State.UNLOADED)
            raise
        except Exception as error:
            self._keep(slot, error, evict=evict)
            if commit and not old:
                slot.move(*before)  # it is the other version that failed
            raise
        slot.resident = fresh
        slot.loads += 1
        slot.used = time.monotonic()
        if note:
            log.warning('model "%s": %s', slot.name, note)
            slot.failures += 1
        slot.move(State.READY, note)
        if old:
            self.residency.retire(old)

    async def _load_aside(
        self, slot: ModelSlot[Any], artefact: Artefact | None, damage: str, *, evict: bool
    ) -> Resident[Any]:
        try:
            return await self.residency.load_aside(slot, artefact, evict=evict)
        except ModelUnavailable as error:
            if damage:  # the earlier version is of no use either; what has to be mended is the current one
                raise ModelUnavailable(damage, metadata={"model": slot.name}) from error
            raise

    def _keep(self, slot: ModelSlot[Any], error: Exception, *, evict: bool) -> None:
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

    async def _check(self, slot: ModelSlot[Any], fresh: Resident[Any], artefact: Artefact) -> str:
        if slot.resident is None:
            slot.move(State.WARMING)
        return await self.plans[slot.name].check(fresh.engine, artefact)

    def _is_current(self, slot: ModelSlot[Any]) -> bool:
        assert slot.loaded is not None
        identity = slot.loaded.description.identity
        return self.store.digest(slot.name) == (identity.version, identity.digest)

    async def _to_its_end(self, work: Any) -> None:
        """Do what an operator asked for even if the call is cancelled meanwhile: half of it would help nobody."""
        await asyncio.shield(self._start(work))

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the slot has said it
