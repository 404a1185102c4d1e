"""A handle refers to a model. Servicers keep it while engines are loaded, replaced and evicted behind it.

Use it on the event loop alone.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from server.domain.context import current_or_none
from server.domain.errors import ModelLoading, ModelNotFound, ModelUnavailable, QuintetError
from server.domain.models import ModelDescription, ModelTask

if TYPE_CHECKING:
    from server.models.spec import ModelSpec

log = logging.getLogger(__name__)
T = TypeVar("T")
_revisions = itertools.count(1)


class State(Enum):
    """Values are those of quintet.v1.ModelState."""

    LOADING = 1
    READY = 2
    FAILED = 3
    UNLOADED = 4
    WARMING = 5


class Wanted(NamedTuple):
    """A version that should be served, and why another one or none is."""

    version: str
    why: str


@dataclass(slots=True, eq=False)
class Resident(Generic[T]):
    """An engine in memory and the number of its readers. Private to this room."""

    engine: T | None  # None when it was freed
    bytes: int = 0
    readers: int = 0
    on_idle: Callable[[], None] | None = None  # called after the last reader of an engine that was replaced


class Handle(Generic[T]):
    """A reference to a model, or to something that is made of models.

    `revision` grows with every change, over all handles; `on_change` is called after each. A model of the ModelManager
    has a `spec`, and a `demand` that loads it; other handles are filled by load() or install().
    """

    def __init__(
        self,
        name: str,
        on_change: Callable[[], None] = lambda: None,
        task: ModelTask | None = None,
        *,
        spec: "ModelSpec[T] | None" = None,
        demand: "Callable[[Handle[Any], float], Awaitable[None]] | None" = None,
    ) -> None:
        self.name = name
        self.task = task
        self.spec = spec
        self.message = ""
        self.is_away = False  # it cannot answer because of an outage elsewhere, which needs nothing of this server
        self.wanted: Wanted | None = None
        self.revision = next(_revisions)
        self.resident: Resident[T] | None = None
        self.used = 0.0  # time.monotonic() of the latest use
        self.loads = 0
        self.failures = 0
        self.lock = asyncio.Lock()  # held while the engine is loaded, replaced or evicted
        self._failure = ""  # what the log has said
        self._on_change = on_change
        self._demand = demand
        # Whether a call that finds no engine loads it and waits, so that this is no trouble.
        self._loads_on_demand = spec is not None and not spec.settings.preload
        self.state = State.UNLOADED if self._loads_on_demand else State.LOADING

    def use(self, deadline: float) -> "_Use[T]":
        """The engine for an `async with` block: it is loaded first, and not freed before the block ends.

        Entering raises ModelLoading if it cannot be loaded by `deadline` (time.monotonic()), ModelUnavailable and
        ModelDoesNotFit.
        """
        return _Use(self, deadline)

    def get(self) -> T:
        """The engine of a handle that is never evicted. Raises ModelLoading or ModelUnavailable if it has none."""
        assert self._demand is None, f"{self.name} may be evicted: use use()"
        if (engine := self.loaded) is None:
            raise self._absent()
        return engine

    @property
    def loaded(self) -> T | None:
        """The engine if there is one, whatever the state."""
        return self.resident.engine if self.resident else None

    @property
    def description(self) -> ModelDescription | None:
        """What the engine says of itself; None if there is none, or one that is not a model's."""
        return getattr(self.loaded, "description", None)

    @property
    def memory_bytes(self) -> int:
        return self.resident.bytes if self.resident else 0

    @property
    def failed(self) -> bool:
        """Whether an operator must act before it can be used."""
        return self.state is State.FAILED

    def trouble(self) -> str:
        """Why a call that needs it would not be answered; empty if it would, perhaps after loading."""
        if self.state is State.READY:
            return ""
        if self.state is State.UNLOADED:
            return self.message
        return "" if self._loads_on_demand else self.message or f'"{self.name}" is loading'

    async def load(self, make: Callable[[], Awaitable[T]]) -> None:
        """Fill it with what `make` returns, or keep the reason if that fails."""
        try:
            engine = await make()
        except Exception as error:
            self.fail(explain(self.name, error))
        else:
            self.install(Resident(engine))

    def install(self, resident: Resident[T], message: str = "") -> None:
        """Serve this engine from now on."""
        self.resident = resident
        self.loads += 1
        self.used = time.monotonic()
        self._failure = ""
        self.move(State.READY, message)

    def fail(self, message: str) -> None:
        """There is no engine, and an operator must act. The log says it once, however often it is tried again."""
        if message != self._failure:
            log.error("%s", message)
        self._failure = message
        self.move(State.FAILED, message)

    def want(self, wanted: Wanted | None) -> None:
        """Say which version should be served instead; None if what is served is right."""
        if wanted != self.wanted:
            self.wanted = wanted
            self._changed()

    def move(self, state: State, message: str = "", *, is_away: bool = False) -> None:
        """Change the state. LOADING with an engine means that it cannot answer now and will recover by itself."""
        if self._demand is not None and state not in (State.LOADING, State.WARMING):
            self._loads_on_demand = state is not State.FAILED
        self.state, self.message, self.is_away = state, message, is_away
        self._changed()

    async def demand(self, deadline: float) -> None:
        """Load the engine. Raises what entering use() raises."""
        if self.state is State.FAILED or self._demand is None:
            raise self._absent()
        await self._demand(self, deadline)

    def _changed(self) -> None:
        self.revision = next(_revisions)
        self._on_change()

    def _absent(self) -> QuintetError:
        if self.state is State.FAILED:
            return ModelUnavailable(self.message, metadata={"model": self.name})
        return ModelLoading(self.message or f'"{self.name}" is loading', retry_after=1.0)


@dataclass(slots=True, eq=False)
class _Use(Generic[T]):
    """One use of a handle. A class instead of a generator: every call pays for it, less than 1 µs."""

    handle: Handle[T]
    deadline: float
    resident: Resident[T] = field(init=False)

    async def __aenter__(self) -> T:
        while (resident := self.handle.resident) is None:
            await self.handle.demand(self.deadline)
        resident.readers += 1
        self.handle.used = time.monotonic()
        self.resident = resident
        assert resident.engine is not None, "an engine was freed while its handle still had it"
        return resident.engine

    async def __aexit__(self, *_: object) -> None:
        resident = self.resident
        resident.readers -= 1
        if resident.on_idle is not None and not resident.readers:
            resident.on_idle()


S = TypeVar("S")


def find(handles: Mapping[str, S], name: str) -> S:
    """The handle of that name. Raises ModelNotFound, which lists what the current caller may see."""
    if name not in handles:
        call = current_or_none()
        raise ModelNotFound(name, [each for each in handles if call is None or call.caller.sees_model(each)])
    return handles[name]


def explain(name: str, error: Exception) -> str:
    """Why a model could not be loaded, for callers; errors that are not Quintet's go to the log."""
    if isinstance(error, QuintetError):
        return error.message
    log.error("model %s could not be loaded", name, exc_info=error)
    return f'model "{name}" could not be loaded; see the server\'s log'
