"""Refuse early: what is over the limit, what comes too late, and everything while the server stops."""

import math
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from server.calls import Call
from server.errors import DeadlineExceeded, ServerOverloaded, ServerStopping

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
# A limit of gRPC's own also refuses health checks, so the count is kept here, where health never passes.
_RETRY_AFTER_SECONDS = 0.5


class Admission:
    """Counts the calls that run. Used on the event loop alone, so a plain integer is enough."""

    def __init__(self, max_concurrent_calls: int, default_deadline_seconds: float) -> None:
        self._limit = max_concurrent_calls
        self._default_deadline = default_deadline_seconds
        self._running = 0
        self.stopping = False

    def identify(self, method: str, context: Any) -> Call:
        """The call with the caller's request id, or a new one, and its deadline, or the default one."""
        given = next((value for key, value in context.invocation_metadata() or () if key == "x-request-id"), "")
        request_id = given if isinstance(given, str) and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        remaining = context.time_remaining()
        # Without a deadline gRPC says None, or infinity on some paths.
        if remaining is None or not math.isfinite(remaining):
            remaining = self._default_deadline
        return Call(method, request_id, time.monotonic() + remaining)

    @contextmanager
    def admit(self, call: Call) -> Iterator[None]:
        """Hold a place while the call runs, or refuse it at once."""
        if self.stopping:
            raise ServerStopping("the server is stopping", retry_after=1.0)
        if call.deadline <= time.monotonic():  # gRPC still delivers calls that have expired
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        if self._running >= self._limit:
            raise ServerOverloaded(f"{self._limit} calls are running", retry_after=_RETRY_AFTER_SECONDS)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
