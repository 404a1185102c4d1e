"""The pool: which models are in memory. It loads, evicts and replaces them within a memory budget.

One way leads into a slot, whoever asks for it: `swap.py`. `residency.py` has the memory and the threads.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from server.domain.errors import ModelLoading
from server.models.handle import Handle, State, explain
from server.models.registry import Registry
from server.models.residency import Residency
from server.models.specs import Found, ModelSpec, prepare_all
from server.models.store import CURRENT
from server.models.swap import Swapper

log = logging.getLogger(__name__)
T = TypeVar("T")

_ANSWER_SECONDS = 0.2  # kept from a waiting call's deadline, so that MODEL_LOADING still reaches the caller
_USUAL_SECONDS = 2.0  # of a load that was never timed


class ModelManager:
    """The slots of all models with plans. Use `running`."""

    def __init__(self, registry: Registry, budget: int | None) -> None:
        self.on_change: Callable[[], None] = lambda: None  # called after every change of a slot
        self.registry = registry
        self.store = registry.store
        self.plans: dict[str, ModelSpec[Any]] = {}
        self.slots: dict[str, Handle[Any]] = {}
        self.residency = Residency(self.slots, self.plans, self.store, budget)
        self._swapper = Swapper(self.plans, self.store, self.residency)
        self._demands: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def running(cls, registry: Registry, budget: int | None) -> AsyncIterator["ModelManager"]:
        """An empty pool. On leaving, loading is given up."""
        pool = cls(registry, budget)
        try:
            yield pool
        finally:
            for task in pool._tasks:
                task.cancel()
            await asyncio.gather(*pool._tasks, return_exceptions=True)
            pool.residency.close()

    def add(self, plan: ModelSpec[T]) -> Handle[T]:
        """A slot for a model; nothing is loaded yet."""
        slot: Handle[T] = Handle(plan.name, self._changed, self._demand, preload=plan.preload)
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
                await self._swapper.replace(
                    slot, partial(self._swapper.find_current, slot), strict=slot.resident is not None
                )

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

                await self._swapper.replace(slot, find, strict=not force, commit=commit)
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
                    await self._swapper.replace(
                        slot, partial(self._swapper.find_current, slot), strict=slot.resident is not None
                    )
            except Exception as error:
                explain(name, error)  # the slot says why, and what was served still is

    # ------------------------------------------------------------ the one way into a slot

    async def _demand(self, slot: Handle[Any], deadline: float) -> None:
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

    async def _load(self, slot: Handle[Any], *, evict: bool = True) -> None:
        async with slot.turn:
            if slot.resident is None:
                await self._swapper.replace(slot, partial(self._swapper.find_current, slot), strict=False, evict=evict)

    def _is_current(self, slot: Handle[Any]) -> bool:
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
