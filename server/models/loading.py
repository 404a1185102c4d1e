"""Engines come into memory and out of it here, within the memory limit.

Loads into this process run one at a time on one thread: importing and constructing hold the GIL anyway, and their
peaks of memory do not add up. An out-of-process engine is loaded beside them. Evicted is what was used longest ago,
is not pinned and has no readers.
"""

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from server.domain.errors import ModelDoesNotFit
from server.domain.priority import step_back
from server.domain.threads import Threads
from server.models import process_memory
from server.models.artefact import Artefact
from server.models.handle import Handle, Resident, State
from server.models.spec import ModelSpec, OutOfProcess
from server.models.uses import Use, note_use, read_use

log = logging.getLogger(__name__)
_END_SECONDS = 3.0  # for what still runs at the end, for instance a download from a hub that hangs
T = TypeVar("T")


@dataclass
class MemoryLimit:
    """The memory of all models together: at most `limit` bytes, or any number if that is None.

    `held` is in bytes by engine, or by name for models that are loaded elsewhere. It is changed on the event loop
    alone; other threads may read.
    """

    limit: int | None
    held: dict[object, int] = field(default_factory=dict)

    @property
    def in_use(self) -> int:
        return sum(self.held.copy().values())


class Loader:
    """Loads, evicts and frees the engines of `handles`, which have a spec each."""

    def __init__(self, handles: Mapping[str, Handle[Any]], memory: MemoryLimit) -> None:
        self._handles, self._memory = handles, memory
        # "starter" waits for other processes to start, "reader" reads and hashes whole versions, "watcher" reads
        # pointers and other small files.
        names = ("loader", "starter", "reader", "watcher", "freer")
        self._threads = {name: Threads(name, idle_seconds=None) for name in names}
        self._loading = asyncio.Lock()  # into this process
        self._measuring = asyncio.Lock()  # of this process's memory: nothing else comes or goes meanwhile
        self._admission = asyncio.Lock()  # making room and taking it
        self._freeing: set[asyncio.Task[None]] = set()

    async def on(self, thread: str, work: Callable[[], T]) -> T:
        """Run `work` on the thread of that name."""
        return await self._threads[thread].run(work)

    async def step_back(self) -> None:
        """Lower the priority of the threads, once the server is serving. "freer" keeps its own: see free()."""
        await asyncio.gather(*(self.on(thread, step_back) for thread in ("loader", "starter", "reader")))

    def close(self) -> None:
        """Drop what waits for the threads, give what runs 3 s, and end the processes of engines."""
        end = time.monotonic() + _END_SECONDS
        for thread in self._threads.values():
            thread.close()
        for thread in self._threads.values():
            if not thread.join(end - time.monotonic()):
                log.warning("the thread %s still works; the process ends without it", thread.name)
        for handle in self._handles.values():
            if isinstance(handle.loaded, OutOfProcess):
                handle.loaded.close()

    async def load(self, spec: ModelSpec[Any], artefact: Artefact | None, *, evict: bool) -> Resident[Any]:
        """Construct an engine beside the one that is served. Raises ModelDoesNotFit, and what constructing raises."""
        known = await self.on("watcher", partial(read_use, artefact, spec.engine)) if artefact else None
        # An artefact that was never loaded is assumed to take the size of its files.
        needed = known.peak_bytes if known else artefact.manifest.size_bytes if artefact else 0
        outside = spec.out_of_process
        async with nullcontext() if outside else self._loading:
            async with self._admission:
                await self._make_room(spec.name, needed, evict=evict)
                self._memory.held[spec] = needed
            try:
                async with nullcontext() if outside else self._measuring:
                    work = partial(_construct, spec, artefact, is_known=known is not None)
                    fresh, use = await self.on("starter" if outside else "loader", work)
                seconds = use.seconds
                if artefact:
                    use = await self.on("watcher", partial(note_use, artefact, spec.engine, use))
                self._memory.held[fresh] = fresh.bytes = use.resident_bytes
            finally:
                del self._memory.held[spec]
        log.info('model "%s": loaded in %.1f s, %.0f MiB', spec.name, seconds, fresh.bytes / 2**20)
        return fresh

    async def reserve(self, name: str, size: int) -> None:
        """Hold memory for a model that is loaded elsewhere, evicting others. Raises ModelDoesNotFit."""
        async with self._admission:
            self._memory.held.pop(name, None)
            await self._make_room(name, size, evict=True)
            self._memory.held[name] = size

    async def _make_room(self, name: str, needed: int, *, evict: bool) -> None:
        """Evict others as far as that helps. Raises ModelDoesNotFit before it evicts any in vain."""
        memory = self._memory
        while memory.limit is not None and memory.in_use + needed > memory.limit:
            idle = [
                handle
                for handle in self._handles.values()
                if handle.resident and not handle.resident.readers and not handle.lock.locked()
                if not (handle.spec and handle.spec.settings.pinned) and handle.name != name
            ]
            evictable = sum(handle.memory_bytes for handle in idle) if evict else 0
            if not evictable or memory.in_use - evictable + needed > memory.limit:
                raise ModelDoesNotFit(name, needed, memory.limit, memory.in_use)
            oldest = min(idle, key=lambda handle: handle.used)
            log.info('model "%s": evicted for "%s"', oldest.name, name)
            await self.evict(oldest)

    async def evict(self, handle: Handle[Any]) -> None:
        """Take the engine out of a handle; return when its memory is free, unless it has readers."""
        old, handle.resident = handle.resident, None
        handle.move(State.UNLOADED)
        if old and old.readers:
            self.retire(old)
        elif old:
            await self.free(old)

    def retire(self, old: Resident[Any]) -> None:
        """Free an engine after its last reader."""
        if old.readers:
            old.on_idle = partial(self.retire, old)
            return
        task = asyncio.create_task(self.free(old))
        self._freeing.add(task)
        task.add_done_callback(self._freeing.discard)

    async def free(self, resident: Resident[Any]) -> None:
        """Free an engine without readers, between two loads.

        That holds the GIL and the allocator's locks for milliseconds, so its thread keeps the normal priority: with a
        lower one every other thread would wait until it gets a core.
        """
        async with self._measuring:
            await self.on("freer", partial(_free, resident))
        self._memory.held.pop(resident, None)


def _construct(spec: ModelSpec[T], artefact: Artefact | None, *, is_known: bool) -> tuple[Resident[T], Use]:
    """The engine and what it took. Libraries are imported before measuring: they stay, and belong to no model.

    The engine comes in a Resident, so that it can be freed while this thread still holds the result. If the memory of
    this version `is_known`, it is not measured exactly: trimming stops all other allocations.
    """
    make = spec.prepare()
    begun = time.monotonic()
    if spec.out_of_process:
        engine = make(artefact)
        assert isinstance(engine, OutOfProcess)
        resident, peak = process_memory.resident_bytes(engine.pid), process_memory.peak_bytes(engine.pid)
        return Resident(engine), Use(resident, peak, time.monotonic() - begun)
    if not is_known:
        process_memory.trim()
    before, begun = process_memory.resident_bytes(), time.monotonic()
    process_memory.forget_peak()
    engine = make(artefact)
    peak = process_memory.peak_bytes()
    if not is_known:
        process_memory.trim()
    resident = max(0, process_memory.resident_bytes() - before)
    return Resident(engine), Use(resident, max(resident, peak - before), time.monotonic() - begun)


def prepare_all(specs: Iterable[ModelSpec[Any]]) -> None:
    """Import what all of them need, before there is an engine."""
    for spec in specs:
        with contextlib.suppress(Exception):  # loading the model itself will report it
            spec.prepare()
    process_memory.freeze()


def _free(resident: Resident[Any]) -> None:
    if isinstance(resident.engine, OutOfProcess):
        resident.engine.close()
    try:
        engine = weakref.ref(resident.engine)
    except TypeError:
        engine = None
    resident.engine = None
    if engine is None or engine() is not None:
        process_memory.collect_all()  # it is part of a reference cycle
    process_memory.trim()
