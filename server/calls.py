"""The call that is being served, for whoever needs its deadline or its id. Set by the interceptors."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC. `deadline` is a time.monotonic() instant; every call has one."""

    method: str
    request_id: str
    deadline: float


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
