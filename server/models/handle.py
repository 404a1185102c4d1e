"""Which models there are and how they are: one slot a model, and in it at most one engine that is served.

A slot outlives what is in it: servicers keep the slot and ask it for the engine on every call, so that a model
can come, fail and be replaced without anybody being told. Used on the event loop alone, so plain integers count.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Generic, TypeVar

from server.domain.errors import ModelLoading, ModelNotFound, ModelUnavailable, QuintetError

log = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S")
_revisions = itertools.count(1)


class State(Enum):
    """Values are those of quintet.v1.ModelState."""

    LOADING = 1
    READY = 2
    FAILED = 3
    UNLOADED = 4
    WARMING = 5


class Slot(Generic[T]):
    """The place of one engine. `on_change` is called after every change; `revision` grows with each, over all slots."""

    def __init__(self, name: str, on_change: Callable[[], None]) -> None:
        self.name = name
        self.state = State.LOADING
        self.message = ""
        self.revision = next(_revisions)
        self._engine: T | None = None
        self._on_change = on_change

    async def load(self, build: Callable[[], Awaitable[T]]) -> None:
        """Fill the slot with what `build` returns, warm and ready; keep the reason if it fails."""
        try:
            engine = await build()
        except Exception as error:
            self.fail(explain(self.name, error))
        else:
            self._engine = engine
            self.move(State.READY)

    def fail(self, message: str) -> None:
        """The model is not there and an operator must act."""
        log.error("%s", message)
        self.move(State.FAILED, message)

    def pause(self, message: str) -> None:
        """The model will be back by itself, for instance a child process that is being restarted."""
        if self.state is State.READY:
            self.move(State.LOADING, message)

    def resume(self) -> None:
        """It is back."""
        if self.state is State.LOADING and self._engine is not None:
            self.move(State.READY)

    def move(self, state: State, message: str = "") -> None:
        """Change the state."""
        self.state, self.message = state, message
        self.revision = next(_revisions)
        self._on_change()

    @property
    def failed(self) -> bool:
        """Whether an operator must act before it can be used."""
        return self.state is State.FAILED

    def trouble(self) -> str:
        """Why a call that needs it would not be answered; empty if it would."""
        return "" if self.state is State.READY else self.message or f'"{self.name}" is loading'

    @property
    def loaded(self) -> T | None:
        """The engine if it was ever ready, whatever the state."""
        return self._engine

    def get(self) -> T:
        """The engine. Raises ModelLoading or ModelUnavailable."""
        if self.state is State.READY and self._engine is not None:
            return self._engine
        if self.state is State.FAILED:
            raise ModelUnavailable(self.message, metadata={"model": self.name})
        raise ModelLoading(self.message or f'"{self.name}" is loading', retry_after=1.0)


class OpenSlot(Slot[T]):
    """For an engine that knows best what to say while it cannot answer: health and watchers hear of a pause, and calls
    reach the engine nevertheless.
    """

    def get(self) -> T:
        """The engine once it was ready. Raises ModelLoading or ModelUnavailable before."""
        return self._engine if self._engine is not None else super().get()


class Resident(Generic[T]):
    """An engine in memory, and who reads it. `on_idle` is called once it is retired and has no reader any more."""

    __slots__ = ("_on_idle", "_retired", "bytes", "engine", "readers")

    def __init__(self, engine: T, size: int) -> None:
        self.engine: T | None = engine
        self.bytes = size
        self.readers = 0
        self._retired = False
        self._on_idle: Callable[[], None] | None = None

    def release(self) -> None:
        """A reader is done."""
        self.readers -= 1
        if self._on_idle is not None and not self.readers:
            self._on_idle()

    def retire(self, on_idle: Callable[[], None]) -> None:
        """Nobody new will read it."""
        self._on_idle = on_idle
        if not self.readers:
            on_idle()


class Handle(Slot[T]):
    """The slot of a model that the pool loads, evicts and replaces. Read it only inside `async with slot.use(...)`."""

    def __init__(
        self,
        name: str,
        on_change: Callable[[], None],
        demand: "Callable[[Handle[T], float], Awaitable[None]]",
        *,
        preload: bool,
    ) -> None:
        super().__init__(name, on_change)
        self.state = State.LOADING if preload else State.UNLOADED
        self._comes_by_itself = not preload  # calls find it, or wait for it; not so before the first load
        self.resident: Resident[T] | None = None
        self.used = 0.0  # time.monotonic() of the latest reader's coming
        self.loads = 0
        self.failures = 0
        self.turn = asyncio.Lock()  # of those who change what is in it
        self._demand = demand

    def use(self, deadline: float) -> "Lease[T]":
        """The engine for the length of a block, loaded first if it is not in memory; it stays until the block ends.

        Entering raises ModelLoading if it will not be there by `deadline`, ModelUnavailable and ModelDoesNotFit.
        """
        return Lease(self, deadline)

    def move(self, state: State, message: str = "") -> None:
        """Change the state."""
        if state not in (State.LOADING, State.WARMING):
            self._comes_by_itself = state is not State.FAILED
        super().move(state, message)

    def trouble(self) -> str:
        """As above; a call that finds it unloaded loads it and waits, so that is no trouble unless it did not fit."""
        if self.state is State.UNLOADED:
            return self.message
        return "" if self._comes_by_itself else super().trouble()

    @property
    def loaded(self) -> T | None:
        """The engine if it is in memory."""
        return self.resident.engine if self.resident else None

    def get(self) -> T:
        """Not for models that may go at any moment."""
        raise TypeError(f"{self.name}: use use()")

    async def arrival(self, deadline: float) -> Resident[T]:
        """What is in the slot once something is."""
        while self.resident is None:
            if self.state is State.FAILED:
                raise ModelUnavailable(self.message, metadata={"model": self.name})
            await self._demand(self, deadline)
        return self.resident


class Lease(Generic[T]):
    """A reader of a slot. A class and no generator: it stands in every call's way, for less than 1 µs."""

    __slots__ = ("_deadline", "_resident", "_slot")

    def __init__(self, slot: Handle[T], deadline: float) -> None:
        self._slot = slot
        self._deadline = deadline

    async def __aenter__(self) -> T:
        resident = self._slot.resident or await self._slot.arrival(self._deadline)
        resident.readers += 1
        self._slot.used = time.monotonic()
        self._resident = resident
        assert resident.engine is not None, "it was freed while the slot still had it"
        return resident.engine

    async def __aexit__(self, *_: object) -> None:
        self._resident.release()


def find(slots: Mapping[str, S], name: str) -> S:
    """The slot of that name. Raises ModelNotFound."""
    if name not in slots:
        raise ModelNotFound(name, list(slots))
    return slots[name]


def explain(name: str, error: Exception) -> str:
    """Why a model could not be loaded, for callers; foreign exceptions go to the log."""
    if isinstance(error, QuintetError):
        return error.message
    log.error("model %s could not be loaded", name, exc_info=error)
    return f'model "{name}" could not be loaded; the server\'s log says why'
