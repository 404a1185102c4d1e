"""The call that is being served: its deadline, its id, and where its time went. Set by the interceptors."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a tenant, by one of its keys or by its client certificate. `models` are those it may ask for by name
    or by default; None is all.
    """

    tenant: str
    key_id: str = ""
    roles: frozenset[str] = frozenset()
    models: frozenset[str] | None = None


LOCAL = Caller("local", roles=frozenset({"call", "ingest", "admin"}))  # everybody, where there is no tenants file


@dataclass(slots=True)
class Call:
    """One RPC. `deadline` is a time.monotonic() instant; every call has one, brought or given.

    The seconds are those that its parts waited for a lane, computed, and waited for another server. Parts on several
    lanes at once are added up, so their sum may be more than the call took.
    """

    method: str
    request_id: str
    deadline: float
    brought_deadline: bool = True
    started: float = field(default_factory=time.monotonic)
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    upstream_seconds: float = 0.0
    expected_seconds: float = 0.0  # of compute; admission's estimate
    caller: Caller = LOCAL
    brought_id: bool = False  # whether the caller chose the request id
    # What the call consumed of a language model, by who did the accounting; its limits are settled with it.
    spent_tokens: int = 0
    spent_micros: int = 0
    degraded: bool = False  # whether its limits were decided without the other servers

    def trailers(self) -> tuple[tuple[str, str], ...]:
        """What every call ends with. `server-timing` has the syntax of W3C Server Timing, in milliseconds."""
        timing = (
            f"queue;dur={self.queue_seconds * 1000:.3f}, compute;dur={self.compute_seconds * 1000:.3f}, "
            f"upstream;dur={self.upstream_seconds * 1000:.3f}"
        )
        trailers = (("x-request-id", self.request_id), ("server-timing", timing))
        return (*trailers, ("x-quintet-degraded", "limits")) if self.degraded else trailers


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def enter(call: Call) -> None:
    """Make `call` the current one of this task. Each RPC has a task of its own, so nothing needs to be reset."""
    _current.set(call)


def current() -> Call:
    """The current call. Raises LookupError outside of one."""
    if (call := _current.get()) is None:
        raise LookupError("no call is being served here")
    return call


def request_id() -> str:
    """Id of the current call, or "-" outside of one, for the log."""
    call = _current.get()
    return call.request_id if call else "-"


def charge(*, queue: float = 0.0, compute: float = 0.0, upstream: float = 0.0) -> None:
    """Add seconds to the current call, if there is one: work at the start and in the background has none."""
    if (call := _current.get()) is not None:
        call.queue_seconds += queue
        call.compute_seconds += compute
        call.upstream_seconds += upstream
