"""Context: the call that is being served, with its caller, its deadline and where its time went."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, Self

from server.domain.access import LOCAL, Caller, Right

Metadata = Sequence[tuple[str, str | bytes]]


class UpstreamTrace:
    """The span of one request to a language model: a context manager around the request. This one does nothing."""

    headers: Mapping[str, str] = MappingProxyType({})  # to send along, so that the endpoint can continue the trace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        pass

    def first_token(self) -> None:
        """The first text arrived."""

    def answered(self, model: str, finish_reason: str | None, usage: tuple[int, int, int] | None) -> None:
        """What the endpoint reported; usage is tokens of prompt and answer, and cached ones."""


class Trace(Protocol):
    """The trace of one call. It gets no texts and no keys."""

    id: str

    def part(self, name: str, arrived: float, queue: float, compute: float) -> None:
        """A part ends now: it arrived at a time.monotonic() instant, then waited and computed for so many seconds."""
        ...

    def upstream(self, provider: str, model: str, url: str) -> UpstreamTrace:
        """A request to the language model at `url` is about to be sent."""
        ...

    def end(self, call: "Context", code: str, reason: str) -> None:
        """The call ended with a gRPC status ("OK"); `reason` is empty if it succeeded or was cancelled."""
        ...


BeginTrace = Callable[["Context", Metadata], Trace]  # metadata may name the client's own trace


@dataclass(slots=True)
class Context:
    """One RPC. `deadline` is a time.monotonic() instant: the client's, or the server's default.

    The seconds are sums over the call's parts: waiting for a lane, computing, and waiting for another server. Parts may
    run at the same time, so the sums may be more than the call took.
    """

    method: str
    request_id: str
    deadline: float
    client_deadline: bool = True  # whether the client set the deadline
    started: float = field(default_factory=time.monotonic)
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    upstream_seconds: float = 0.0
    expected_seconds: float = 0.0  # of compute; admission's estimate
    caller: Caller = LOCAL
    right: Right | None = None  # to the collection that it names; checked again where the collection is used
    brought_id: bool = False  # whether the client chose the request id
    trace: Trace | None = None  # None if calls are not traced
    converted: object = None  # the request in the service's types, once converted for its estimate or its answer
    # Use of language models, added by the accounting; the tenant's limits are settled with it.
    spent_tokens: int = 0
    spent_micros: int = 0
    degraded: bool = False  # whether its limits were decided without Redis, on this server alone

    def trailers(self) -> tuple[tuple[str, str], ...]:
        """Every call's trailers. `server-timing` has the syntax of W3C Server Timing, in milliseconds."""
        timing = (
            f"queue;dur={self.queue_seconds * 1000:.3f}, compute;dur={self.compute_seconds * 1000:.3f}, "
            f"upstream;dur={self.upstream_seconds * 1000:.3f}"
        )
        trailers = (("x-request-id", self.request_id), ("server-timing", timing))
        return (*trailers, ("x-quintet-degraded", "limits")) if self.degraded else trailers


_current: ContextVar[Context] = ContextVar("call")


def set_current(call: Context) -> None:
    """Make `call` the current one of this task. Each RPC has its own task, so nothing is reset."""
    _current.set(call)


def current() -> Context:
    """The current call. Raises LookupError outside of one."""
    return _current.get()


def current_or_none() -> Context | None:
    return _current.get(None)


def charge(
    *, queue: float = 0.0, compute: float = 0.0, upstream: float = 0.0, part: str = "", arrived: float = 0.0
) -> None:
    """Add seconds to the current call, if there is one: startup and background work have none.

    A named part gets its own span in the call's trace, from `arrived`, a time.monotonic() instant, to now.
    """
    if (call := _current.get(None)) is not None:
        call.queue_seconds += queue
        call.compute_seconds += compute
        call.upstream_seconds += upstream
        if part and call.trace is not None:
            call.trace.part(part, arrived, queue, compute)


_UNTRACED = UpstreamTrace()


def trace_upstream(provider: str, model: str, url: str) -> UpstreamTrace:
    """The context manager to use around a request to a language model."""
    call = _current.get(None)
    return _UNTRACED if call is None or call.trace is None else call.trace.upstream(provider, model, url)
