"""Which models there are and how they are: one slot a model, from LOADING to READY or FAILED.

A slot outlives what is in it: servicers keep the slot and ask it for the engine on every call, so that a model
can come, fail and be replaced without anybody being told.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Generic, TypeVar

from server.errors import ModelLoading, ModelNotFound, ModelUnavailable, QuintetError

log = logging.getLogger(__name__)
T = TypeVar("T")


class State(Enum):
    """Values are those of quintet.v1.ModelState."""

    LOADING = 1
    READY = 2
    FAILED = 3


class Slot(Generic[T]):
    """The place of one model. `on_change` is called after every change of state."""

    def __init__(self, name: str, on_change: Callable[[], None]) -> None:
        self.name = name
        self.state = State.LOADING
        self.message = ""
        self._engine: T | None = None
        self._on_change = on_change

    async def load(self, build: Callable[[], Awaitable[T]]) -> None:
        """Fill the slot with what `build` returns, warm and ready; keep the reason if it fails."""
        try:
            engine = await build()
        except QuintetError as error:
            self.fail(error.message)
        except Exception:
            log.exception("model %s could not be loaded", self.name)
            self.fail(f'model "{self.name}" could not be loaded; the server\'s log says why')
        else:
            self._engine = engine
            self._move(State.READY)

    def fail(self, message: str) -> None:
        """The model is not there and an operator must act."""
        log.error("%s", message)
        self._move(State.FAILED, message)

    def pause(self, message: str) -> None:
        """The model will be back by itself, for instance a child process that is being restarted."""
        if self.state is State.READY:
            self._move(State.LOADING, message)

    def resume(self) -> None:
        """It is back."""
        if self.state is State.LOADING and self._engine is not None:
            self._move(State.READY)

    def _move(self, state: State, message: str = "") -> None:
        self.state, self.message = state, message
        self._on_change()

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


def find(slots: Mapping[str, Slot[T]], name: str) -> T:
    """The engine of that name. Raises ModelNotFound, ModelLoading or ModelUnavailable."""
    if name not in slots:
        raise ModelNotFound(name, list(slots))
    return slots[name].get()
