"""The ModelManager loads, replaces and evicts models, and follows what others publish."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from server.domain.errors import ModelLoading, ModelUnavailable, RegistryFailed
from server.domain.supervision import supervised
from server.domain.threads import on_thread
from server.models import process_memory
from server.models.artefact import open_version
from server.models.derived import keep_derived
from server.models.following import Follower
from server.models.handle import Handle, State
from server.models.loading import Loader, MemoryLimit, prepare_all
from server.models.mirroring import Mirror
from server.models.spec import ModelSpec
from server.models.store import CURRENT, ModelStore, VersionRefused
from server.models.swap import Swapper

log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

_ANSWER_SECONDS = 0.2  # kept from a waiting call's deadline, so that MODEL_LOADING still reaches the caller
_USUAL_SECONDS = 2.0  # of a load; when a call that could not wait should try again
_COMMIT_SECONDS = 20.0  # for the registry to move an alias


def _to_its_end(operation: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """Finish what an operator asked for even if the call is cancelled: half of it would be of no use."""

    @wraps(operation)
    async def run(*args: P.args, **options: P.kwargs) -> None:
        manager: Any = args[0]
        await asyncio.shield(manager._start(operation(*args, **options)))

    return run


class ModelManager:
    """All models and what is made of them: add() and derive() everything, then start()."""

    def __init__(self, store: ModelStore, memory_limit: int | None) -> None:
        self.on_change: Callable[[], None] = lambda: None  # called after every change of a handle
        self.store = store
        self.handles: dict[str, Handle[Any]] = {}  # of models with specs
        self._specs: list[tuple[Handle[Any], ModelSpec[Any]]] = []
        self.memory = MemoryLimit(memory_limit)
        self._loader = Loader(self.handles, self.memory)
        self.reserve_memory = self._loader.reserve
        self._swapper = Swapper(self.store, self._loader)
        self.mirror = Mirror(self.store)
        self.follower = Follower(self.handles, self.store, self._loader, self._swapper, self.mirror)
        self._derived: dict[Handle[Any], tuple[Callable[..., Awaitable[Any]], Sequence[Handle[Any]]]] = {}
        self._awaited: list[Handle[Any]] = []  # what is loaded at the start
        self._demands: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._change = asyncio.Event()  # a new one after every change

    async def aclose(self) -> None:
        """Give up loading and close all engines."""
        for task in self._tasks:
            task.cancel()
        await self.follower.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await on_thread("closer", self._loader.close)

    def add(self, spec: ModelSpec[T]) -> Handle[T]:
        """A handle of a model; nothing is loaded yet."""
        handle: Handle[T] = Handle(spec.name, self.changed, spec.task, spec=spec, demand=self._demand)
        self.handles[spec.name] = handle
        self._specs.append((handle, spec))
        return handle

    def derive(self, name: str, make: Callable[..., Awaitable[T]], depends_on: Sequence[Handle[Any]]) -> Handle[T]:
        """A handle of what `make` makes of the engines of `depends_on`, whenever one of them is loaded or replaced."""
        handle: Handle[T] = Handle(name, self.changed)
        self._derived[handle] = (make, depends_on)
        return handle

    def changed(self) -> None:
        """A handle has changed."""
        self._change.set()
        self._change = asyncio.Event()
        self.on_change()

    # ------------------------------------------------------------ starting and following

    def start(self, others: Iterable[Handle[Any]] = ()) -> None:
        """Begin to load everything, and to follow what is published. loaded() also waits for `others`."""
        self._awaited = [*(handle for handle, spec in self._specs if spec.settings.preload), *self._derived, *others]
        self.follower.needed = {each for _, depends_on in self._derived.values() for each in depends_on}
        for handle, (make, depends_on) in self._derived.items():
            keep = partial(keep_derived, handle, make, depends_on, lambda: self._change)
            self._keep(supervised(handle.name, keep))
        self._keep(supervised("loading", self._load_and_follow))

    async def loaded(self) -> None:
        """Return when everything that is loaded at the start was loaded or has failed."""
        loading = (State.LOADING, State.WARMING)
        while any(handle.loaded is None and handle.state in loading for handle in self._awaited):
            await self._change.wait()

    async def _load_and_follow(self) -> None:
        await self.follower.start()  # before loading, so that no change is missed
        await self.preload()
        self.mirror.ask_for_all()
        for _, depends_on in self._derived.values():
            for handle in depends_on:
                if handle.spec and handle.state is State.UNLOADED:
                    self._start(self._load(handle))
        # The libraries that loading imports are 50,000 objects, and a garbage collection of them takes 20 ms.
        await self.loaded()
        process_memory.freeze()

    async def preload(self) -> None:
        """Load what is to be in memory from the start, as far as the memory limit goes: nothing is evicted for it."""
        wanted = [(handle, spec) for handle, spec in self._specs if spec.settings.preload]
        specs = [spec for _, spec in wanted if self.follower.is_here(spec.name) or not spec.has_artefact]
        # Imports come first on the one loading thread, while other processes start.
        loads = (self._load_first(handle) for handle, _ in wanted)
        await asyncio.gather(self._loader.on("loader", partial(prepare_all, specs)), *loads, return_exceptions=True)
        await self._loader.step_back()

    async def _load_first(self, handle: Handle[Any]) -> None:
        """Load it at the start. What is not on disk may come from the registry."""
        if not self.follower.is_here(handle.name):
            await self.mirror.first_answer(handle.name)
        await self._load(handle, evict=False)

    # ------------------------------------------------------------ what operators ask for

    async def load(self, name: str, deadline: float) -> None:
        """Bring it into memory; a failed model is tried again. Raises what handle.use() raises."""
        handle = self.handles[name]
        if handle.resident is None:
            await self._demand(handle, deadline)

    @_to_its_end
    async def unload(self, name: str) -> None:
        """Take it out of memory; readers keep it until they are done."""
        handle = self.handles[name]
        async with handle.lock:
            await self._loader.evict(handle)

    @_to_its_end
    async def reload(self, name: str) -> None:
        """Read the alias and all files again, and serve what they are now. Raises what prevents that.

        While the registry is away or hangs, the alias on disk counts.
        """
        handle = self.handles[name]
        try:
            await self.mirror.ask_now(name)
        except VersionRefused as refused:
            if refused.is_damaged:  # trying again does not help
                raise ModelUnavailable(refused.message, metadata={"model": name}) from refused
            raise
        except RegistryFailed as error:
            log.warning('model "%s" is reloaded from disk: %s', name, error.message)
        async with handle.lock:
            await self._swapper.serve_current(handle)

    @_to_its_end
    async def set_alias(self, name: str, alias: str, target: str, *, force: bool = False) -> None:
        """Move an alias. `current` moves only to a version that was loaded and checked (unless forced), and serves it.

        Raises ModelVersionNotFound, RegistryFailed, StorageFull, and what loading raises.
        """
        handle = self.handles[name]
        with contextlib.suppress(VersionRefused):  # the target may be another one
            await self.mirror.ask_now(name)
        async with handle.lock:
            version = await self._loader.on("watcher", partial(self.store.resolve, name, target))
            find = partial(open_version, self.store.models, name, version)
            commit = partial(self._point, name, alias, version)
            if alias == CURRENT:
                await self._swapper.replace(handle, lambda: (find(), ""), strict=not force, commit=commit)
            else:
                await self._loader.on("reader", find)
                await commit()
                handle.move(handle.state, handle.message)
        log.info('model "%s": %s is version %s now', name, alias, version)

    async def _point(self, name: str, alias: str, version: str) -> None:
        """Move an alias on disk, and before that in the registry if there is one."""
        try:
            async with asyncio.timeout(_COMMIT_SECONDS):
                await on_thread("alias", partial(self.store.point, name, alias, version))
        except TimeoutError:
            raise RegistryFailed(f"the model registry did not answer within {_COMMIT_SECONDS:g} s") from None

    # ------------------------------------------------------------ loading

    async def _demand(self, handle: Handle[Any], deadline: float) -> None:
        """Wait for one load that all callers share. Raises ModelLoading if it will not end before the deadline."""
        task = self._demands.get(handle.name)
        if task is None:
            task = self._demands[handle.name] = self._start(self._load(handle))
            task.add_done_callback(lambda _: self._demands.pop(handle.name))
        patience = deadline - time.monotonic() - _ANSWER_SECONDS
        done, _ = await asyncio.wait({task}, timeout=max(0.0, patience))
        if not done:
            raise ModelLoading(handle.message or f'model "{handle.name}" is loading', retry_after=_USUAL_SECONDS)
        task.result()

    async def _load(self, handle: Handle[Any], *, evict: bool = True) -> None:
        async with handle.lock:
            if handle.resident is None:
                await self._swapper.serve_current(handle, evict=evict)

    def _start(self, work: Any) -> asyncio.Task[None]:
        return self._keep(asyncio.create_task(work))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Cancel it at the end, if it still runs."""
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its handle says it
