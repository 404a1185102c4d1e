"""A circuit breaker: a provider that fails repeatedly is not asked for a while; then one call probes it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from functools import partial

_LATEST = 20  # outcomes that are considered


class CircuitState(Enum):
    """Values are those of the metric."""

    CLOSED = 0  # the provider is asked
    HALF_OPEN = 1  # by one call at a time
    OPEN = 2  # by none


@dataclass(eq=False)
class CircuitBreaker:
    """That of one provider. Use it on the event loop only.

    It opens when `failures` of the latest outcomes, and at least half of them, were failures, ignoring those older than
    `window_seconds`. After `open_seconds` it admits one call, the probe: if that succeeds it closes, otherwise it opens
    again. Each call gets a ticket and reports with it. Reports on tickets from before the latest change of state are
    ignored, so that a call that began long ago decides nothing. `on_change` is called after each change of state.
    """

    name: str
    _: KW_ONLY
    failures: int = 5
    window_seconds: float = 30.0
    open_seconds: float = 10.0
    clock: Callable[[], float] = time.monotonic
    on_change: Callable[[], None] = lambda: None
    opened: int = field(default=0, init=False)  # how often
    _outcomes: deque[tuple[float, bool]] = field(default_factory=partial(deque, maxlen=_LATEST), init=False)
    _open_until: float | None = field(default=None, init=False)
    _epoch: int = field(default=0, init=False)
    _probing: bool = field(default=False, init=False)

    @property
    def state(self) -> CircuitState:
        if self._open_until is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self.seconds_left else CircuitState.HALF_OPEN

    @property
    def seconds_left(self) -> float:
        """Until it is half open; 0 if it is not open."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - self.clock())

    def enter(self) -> int | None:
        """A call's ticket, or None if the provider must not be asked now."""
        if self.state is CircuitState.CLOSED:
            return self._epoch
        if self.state is CircuitState.OPEN or self._probing:
            return None
        self._probing = True
        self._epoch += 1
        return self._epoch

    def succeeded(self, ticket: int) -> None:
        if ticket != self._epoch:
            return
        if self._open_until is None:
            self._outcomes.append((self.clock(), True))
        else:
            self._move(None)

    def failed(self, ticket: int) -> None:
        if ticket != self._epoch:
            return
        now = self.clock()
        self._outcomes.append((now, False))
        if self._open_until is not None or self._is_failing(now):
            self.opened += 1
            self._move(now + self.open_seconds)

    def gave_up(self, ticket: int) -> None:
        """The call ended. Without an earlier report that decides nothing, and another call may probe."""
        if ticket == self._epoch:
            self._probing = False

    def _is_failing(self, now: float) -> bool:
        outcomes = [succeeded for at, succeeded in self._outcomes if at > now - self.window_seconds]
        failures = outcomes.count(False)
        return failures >= self.failures and 2 * failures >= len(outcomes)

    def _move(self, open_until: float | None) -> None:
        self._open_until = open_until
        self._probing = False
        self._epoch += 1
        self._outcomes.clear()
        self.on_change()
