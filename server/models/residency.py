"""Residency: engines in memory, within the budget.

Loads are admitted one at a time, so their peaks do not add up, and run on one thread, because importing and
constructing hold the GIL anyway. An engine with a process of its own is loaded beside them, and what it will take is
held in the budget meanwhile. What makes room is evicted: least recently used, not pinned, read by nobody.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

from server.domain.priority import step_back
from server.models.artefact import Artefact
from server.models.handle import Handle, Resident, State
from server.models.memory_limit import Budget
from server.models.specs import ModelSpec, OutOfProcess, construct, drop
from server.models.store import ModelStore

log = logging.getLogger(__name__)
T = TypeVar("T")


class Residency:
    """What is in memory of the models in `slots`, which have a plan each. Use `running`."""

    def __init__(
        self,
        slots: Mapping[str, Handle[Any]],
        plans: Mapping[str, ModelSpec[Any]],
        store: ModelStore,
        budget: int | None,
    ) -> None:
        self.budget = Budget(budget)
        self.loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self.starter = ThreadPoolExecutor(1, thread_name_prefix="starter")  # of other processes
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="reader")  # of files, which are hashed
        self._threads = (self.loader, self.starter, self.reader)
        self._dropper = ThreadPoolExecutor(1, thread_name_prefix="dropper")
        self._slots, self._plans, self._store = slots, plans, store
        self._turn = asyncio.Lock()  # of loading into this process
        self._measuring = asyncio.Lock()  # of what this process takes: nothing else comes or goes meanwhile
        self._admission = asyncio.Lock()  # of making room and taking it
        self._discarding: set[asyncio.Task[None]] = set()

    async def step_back(self) -> None:
        """From now on somebody is served, and what is loaded can wait."""
        await asyncio.gather(*(self.on(thread, step_back) for thread in self._threads))

    def close(self) -> None:
        """Wait for what runs on the threads, refuse what waits, and end the processes of engines."""
        for thread in (*self._threads, self._dropper):
            thread.shutdown(cancel_futures=True)
        for slot in self._slots.values():
            if isinstance(slot.loaded, OutOfProcess):
                slot.loaded.close()

    async def load_aside(self, slot: Handle[Any], artefact: Artefact | None, *, evict: bool) -> Resident[Any]:
        """Construct an engine beside what is in the slot. Raises ModelDoesNotFit, and what constructing raises."""
        plan = self._plans[slot.name]
        known = await asyncio.to_thread(self._store.use, artefact, plan.engine) if artefact else None
        # What was never loaded is taken for as large as its files, which hold the weights once an engine at least.
        needed = known.peak_bytes if known else artefact.manifest.size_bytes if artefact else 0
        thread: ThreadPoolExecutor = self.loader
        turn: AbstractAsyncContextManager[None] = self._turn
        if plan.out_of_process:
            thread, turn = self.starter, nullcontext()
        async with turn:
            async with self._admission:
                await self._make_room(slot.name, needed, evict=evict)
                self.budget.hold(slot, needed)
            return await self._construct(slot, artefact, thread, is_known=known is not None)

    async def _construct(
        self, slot: Handle[Any], artefact: Artefact | None, thread: ThreadPoolExecutor, *, is_known: bool
    ) -> Resident[Any]:
        """Construct an engine for which the budget holds enough; hold what it takes instead."""
        plan = self._plans[slot.name]
        try:
            async with nullcontext() if plan.out_of_process else self._measuring:
                engine, use = await self.on(thread, partial(construct, plan, artefact, is_known=is_known))
            seconds = use.seconds
            if artefact:
                use = await asyncio.to_thread(self._store.note_use, artefact, plan.engine, use)
            fresh: Resident[Any] = Resident(engine, use.resident_bytes)
            self.budget.hold(fresh, fresh.bytes)
        finally:
            self.budget.free(slot)
        log.info('model "%s": loaded in %.1f s, %.0f MiB', slot.name, seconds, fresh.bytes / 2**20)
        return fresh

    async def charge(self, name: str, size: int) -> None:
        """Count memory that others hold for the model `name`, evicting for it. Raises ModelDoesNotFit."""
        async with self._admission:
            self.budget.free(name)
            await self._make_room(name, size)
            self.budget.hold(name, size)

    async def _make_room(self, name: str, needed: int, *, evict: bool = True) -> None:
        """Evict least recently used models that nobody reads. Raises ModelDoesNotFit. The caller has the admission."""
        while self.budget.lacks(needed):
            idle = [
                slot
                for slot in self._slots.values()
                if slot.resident and not slot.resident.readers and not slot.turn.locked()
                if not self._plans[slot.name].pinned and slot.name != name
            ]
            if not idle or not evict:
                raise self.budget.refuse(name, needed)
            victim = min(idle, key=lambda slot: slot.used)
            log.info('model "%s": evicted for "%s"', victim.name, name)
            await self.evict(victim)

    async def evict(self, slot: Handle[Any]) -> None:
        """Empty a slot; return when the memory is free, unless readers still keep it."""
        old, slot.resident = slot.resident, None
        slot.move(State.UNLOADED)
        if old and old.readers:
            self.retire(old)
        elif old:
            await self.discard(old)

    def retire(self, old: Resident[Any]) -> None:
        """Discard it after its last reader."""

        def discard() -> None:
            task = asyncio.create_task(self.discard(old))
            self._discarding.add(task)
            task.add_done_callback(self._discarding.discard)

        old.retire(discard)

    async def discard(self, resident: Resident[Any]) -> None:
        """Drop the engine, between two loads, and give its memory back.

        That holds the GIL and locks of the allocator for milliseconds, so the thread that does it never steps back:
        everybody would wait until it has a core.
        """
        async with self._measuring:
            await self.on(self._dropper, partial(drop, resident))
        self.budget.free(resident)

    @staticmethod
    async def on(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Work on one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(thread, work)
