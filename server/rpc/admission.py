"""Refuse early: what is over the limit, what would wait too long, what comes too late, and all while the server stops.

How long a call would wait is estimated: each method knows how much compute a byte of its requests took, a moving
average, so the calls of it that run add up to a backlog in seconds of one lane. A refusal costs a tenth of a
millisecond; a call that is let in and then given up costs its compute, and the patience of everybody behind it.
"""

import logging
import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import Any

from server.domain.context import Context
from server.domain.errors import DeadlineExceeded, ServerOverloaded, ServerStopping
from server.rpc.method_stats import Method

log = logging.getLogger(__name__)
Metadata = Sequence[tuple[str, str | bytes]]
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_RETRY_AFTER_SECONDS = 0.5
# A caller whose own work is long may wait for as many times that long, even if it is more than the limit.
_PATIENCE = 4.0
_WEIGHT = 0.05  # of the latest call in the moving averages
_WARN_EVERY_SECONDS = 10.0


class Admission:
    """Knows the calls that run. Used on the event loop alone, so plain numbers are enough.

    A limit of gRPC's own also refuses health checks, so calls are counted here, where health never passes. `lanes`
    serve each method, except those of the services in `lanes_of`.
    """

    def __init__(
        self,
        max_calls: int,
        default_deadline_seconds: float,
        *,
        max_wait_seconds: float,
        lanes: int,
        lanes_of: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._limit = max_calls
        self._default_deadline = default_deadline_seconds
        self._max_wait = max_wait_seconds
        self._lanes = lanes
        self._lanes_of = lanes_of
        prefix = secrets.token_hex(12)  # once: it is a system call
        self._ids = (f"{prefix}{number:08x}" for number in count()).__next__
        self._next_warning = 0.0
        self._unsaid = 0  # refusals since the last warning
        self._methods: dict[str, Method] = {}
        self.running = 0
        self.refused = {"stopping": 0, "late": 0, "calls": 0, "wait": 0}
        self.stopping = False

    @property
    def methods(self) -> Mapping[str, Method]:
        """What is known of every method, by its path."""
        return self._methods

    def method(self, name: str) -> Method:
        """The numbers of one method; made when it is registered."""
        lanes = self._lanes_of.get(name.split("/")[1], self._lanes)
        return self._methods.setdefault(name, Method(name, lanes))

    def identify(self, method: str, metadata: Metadata, context: Any) -> Context:
        """The call with the caller's request id, or a new one, and its deadline, or the default one."""
        request_id = ""
        for key, value in metadata:
            if key == "x-request-id":
                request_id = value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else ""
                break
        remaining = context.time_remaining()
        # Without a deadline gRPC says None, or infinity on some paths.
        brought = remaining is not None and math.isfinite(remaining)
        now = time.monotonic()
        deadline = now + (remaining if brought else self._default_deadline)
        return Context(method, request_id or self._ids(), deadline, brought, now, brought_id=bool(request_id))

    def enter(self, call: Context, method: Method, request_bytes: int) -> None:
        """Let the call in, or refuse it at once. Whoever was let in must leave()."""
        if self.stopping:
            self.refused["stopping"] += 1
            raise ServerStopping("the server is stopping", retry_after=1.0)
        left = call.deadline - call.started
        if left <= 0:  # gRPC still delivers calls that have expired
            self.refused["late"] += 1
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        if self.running >= self._limit:
            self._refuse("calls", method, f"{self._limit} calls are running", _RETRY_AFTER_SECONDS)
        wait = method.backlog_seconds / method.lanes
        own = request_bytes * method.seconds_per_byte
        if wait > min(left - own, max(self._max_wait, _PATIENCE * own)) and method.running:
            why = f"the call would wait for about {wait:.1f} s"
            self._refuse("wait", method, why, max(round(wait, 1), _RETRY_AFTER_SECONDS))
        call.expected_seconds = own
        method.backlog_seconds += own
        method.running += 1
        self.running += 1

    def leave(self, call: Context, method: Method, request_bytes: int, *, succeeded: bool) -> None:
        """Give the place back, and learn what the call took if it came to its end."""
        self.running -= 1
        method.running -= 1
        # The last one takes what is left of rounding errors with it.
        method.backlog_seconds = method.backlog_seconds - call.expected_seconds if method.running else 0.0
        if succeeded and request_bytes:
            seconds = call.compute_seconds / request_bytes
            known = method.seconds_per_byte or seconds
            method.seconds_per_byte = known + _WEIGHT * (seconds - known)

    def _refuse(self, why: str, method: Method, message: str, retry_after: float) -> None:
        self.refused[why] += 1
        self._unsaid += 1
        if (now := time.monotonic()) >= self._next_warning:
            self._next_warning = now + _WARN_EVERY_SECONDS
            log.warning("overloaded: %s: %s; refused since the last warning: %d", method.name, message, self._unsaid)
            self._unsaid = 0
        raise ServerOverloaded(message, retry_after=retry_after)
