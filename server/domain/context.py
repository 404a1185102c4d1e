"""The call that is being served: its deadline, its id, and where its time went. Set by the interceptors."""

import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, Self


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


class UpstreamTrace(Protocol):
    """One request to a language model as it is traced: a context that begins before it and ends with it."""

    headers: Mapping[str, str]  # for the endpoint, which may trace its part, too

    def __enter__(self) -> Self:
        """The request is about to be sent."""
        ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """It ended, maybe by `error`."""
        ...

    def first_token(self) -> None:
        """The first text came."""
        ...

    def answered(self, model: str, finish_reason: str | None, usage: tuple[int, int, int] | None) -> None:
        """What the endpoint said of its answer; usage is tokens of prompt and answer, and cached ones."""
        ...


class Trace(Protocol):
    """Who writes down the parts of one call. It hears no texts and no keys."""

    id: str

    def part(self, name: str, arrived: float, queue: float, compute: float) -> None:
        """A part that ends now: it came at `arrived`, a time.monotonic() instant, waited and computed for seconds."""
        ...

    def upstream(self, provider: str, model: str, url: str) -> UpstreamTrace:
        """A request to the language model at `url`, which is about to be sent."""
        ...


@dataclass(slots=True)
class Context:
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
    trace: Trace | None = None  # where calls are traced
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


_current: ContextVar[Context | None] = ContextVar("call", default=None)


def set_current(call: Context) -> None:
    """Make `call` the current one of this task. Each RPC has a task of its own, so nothing needs to be reset."""
    _current.set(call)


def current() -> Context:
    """The current call. Raises LookupError outside of one."""
    if (call := _current.get()) is None:
        raise LookupError("no call is being served here")
    return call


def current_or_none() -> Context | None:
    """The current call, or None outside of one."""
    return _current.get()


def charge(
    *, queue: float = 0.0, compute: float = 0.0, upstream: float = 0.0, part: str = "", arrived: float = 0.0
) -> None:
    """Add seconds to the current call, if there is one: work at the start and in the background has none.

    What has a name is a part of its own in the call's trace, from `arrived`, a time.monotonic() instant, to now.
    """
    if (call := _current.get()) is not None:
        call.queue_seconds += queue
        call.compute_seconds += compute
        call.upstream_seconds += upstream
        if part and call.trace is not None:
            call.trace.part(part, arrived, queue, compute)


class _Untraced:
    """A UpstreamTrace of which nobody takes note."""

    headers: Mapping[str, str] = MappingProxyType({})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        pass

    def first_token(self) -> None:
        pass

    def answered(self, model: str, finish_reason: str | None, usage: tuple[int, int, int] | None) -> None:
        pass


_UNTRACED = _Untraced()


def trace_upstream(provider: str, model: str, url: str) -> UpstreamTrace:
    """To be entered around a request to a language model."""
    call = _current.get()
    return _UNTRACED if call is None or call.trace is None else call.trace.upstream(provider, model, url)
