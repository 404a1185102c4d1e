"""Admission refuses calls early: over the limit of running calls or of the memory of their requests, too long a wait,
too late, or while the server stops.

The wait is estimated. Each method has a moving average of the compute that a byte of its requests took, so the running
calls of a method add up to a backlog in seconds of one lane. A refusal costs a tenth of a millisecond; a call that is
admitted and then misses its deadline costs its compute, and delays all calls behind it.
"""

import logging
import math
import re
import secrets
import time
from collections.abc import Mapping
from itertools import count
from types import MappingProxyType
from typing import Any

from server.domain.context import Context, Metadata
from server.domain.errors import DeadlineExceeded, ServerOverloaded, ServerStopping
from server.rpc.method_stats import Method

log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_RETRY_AFTER_SECONDS = 0.5
# A call may wait for as many times its own compute, even if that is more than the limit.
_PATIENCE = 4.0
_SHORT_WAIT_SECONDS = 0.1
_MOST_REQUEST_BYTES = 128 * 1024 * 1024  # of all running calls
_WEIGHT = 0.05  # of the latest call in the moving averages
_WARN_EVERY_SECONDS = 10.0


class Admission:
    """Counts the running calls. Use it on the event loop only.

    gRPC's own limit would also refuse health checks; those do not pass here. `lanes` serve each method, except those of
    the services in `lanes_of`.
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
        prefix = secrets.token_hex(12)  # once, because it is a system call
        self._ids = (f"{prefix}{number:08x}" for number in count()).__next__
        self._next_warning = 0.0
        self._unlogged = 0  # refusals since the last warning
        self.methods: dict[str, Method] = {}  # by path
        self.running = 0
        self.request_bytes = 0  # of the running calls
        self.refused = {"stopping": 0, "late": 0, "calls": 0, "memory": 0, "wait": 0}
        self.stopping = False

    def method(self, name: str) -> Method:
        """The numbers of one method, "/quintet.v1.ChatService/Chat"."""
        lanes = self._lanes_of.get(name.split("/")[1], self._lanes)
        return self.methods.setdefault(name, Method(name, lanes))

    def identify(self, method: str, metadata: Metadata, context: Any) -> Context:
        """The call, with the client's request id and deadline or with generated ones."""
        request_id = ""
        for key, value in metadata:
            if key == "x-request-id":
                request_id = value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else ""
                break
        remaining = context.time_remaining()
        # Without a deadline gRPC returns None, or infinity on some paths.
        has_deadline = remaining is not None and math.isfinite(remaining)
        now = time.monotonic()
        deadline = now + (remaining if has_deadline else self._default_deadline)
        return Context(method, request_id or self._ids(), deadline, has_deadline, now, brought_id=bool(request_id))

    def check(self, call: Context, method: Method) -> None:
        """Raise a refusal that needs no look at the request, before it is received."""
        if self.stopping:
            self.refused["stopping"] += 1
            raise ServerStopping("the server is stopping", retry_after=1.0)
        if call.deadline <= call.started:  # gRPC delivers expired calls, too
            self.refused["late"] += 1
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        if self.running >= self._limit:
            self._refuse("calls", method, f"{self._limit} calls are running", _RETRY_AFTER_SECONDS)

    def enter(self, call: Context, method: Method, request_bytes: int) -> None:
        """Admit the call with its request, or raise a refusal. Every admitted call must leave()."""
        self.check(call, method)  # the request may have taken a while to arrive
        if self.request_bytes + request_bytes > _MOST_REQUEST_BYTES and self.running:
            why = f"the requests of running calls have {self.request_bytes >> 20} MiB"
            self._refuse("memory", method, why, _RETRY_AFTER_SECONDS)
        left = call.deadline - time.monotonic()
        wait = method.backlog_seconds / method.lanes
        own = request_bytes * method.seconds_per_byte
        if wait > min(left - own, max(self._max_wait, _PATIENCE * own)) and method.running:
            if wait < _SHORT_WAIT_SECONDS:  # it is not the server that is slow
                self.refused["late"] += 1
                raise DeadlineExceeded(f"the deadline is too short: {max(left, 0) * 1000:.0f} ms are left")
            why = f"the call would wait for about {wait:.1f} s"
            self._refuse("wait", method, why, max(round(wait, 1), _RETRY_AFTER_SECONDS))
        self.request_bytes += request_bytes
        call.expected_seconds = own
        method.backlog_seconds += own
        method.running += 1
        self.running += 1

    def leave(self, call: Context, method: Method, request_bytes: int, *, succeeded: bool) -> None:
        """The call ended. If it succeeded, its compute goes into the moving average."""
        self.running -= 1
        self.request_bytes -= request_bytes
        method.running -= 1
        # 0.0 also clears accumulated rounding errors.
        method.backlog_seconds = method.backlog_seconds - call.expected_seconds if method.running else 0.0
        if succeeded and request_bytes:
            seconds = call.compute_seconds / request_bytes
            average = method.seconds_per_byte or seconds
            method.seconds_per_byte = average + _WEIGHT * (seconds - average)

    def _refuse(self, why: str, method: Method, message: str, retry_after: float) -> None:
        self.refused[why] += 1
        self._unlogged += 1
        if (now := time.monotonic()) >= self._next_warning:
            self._next_warning = now + _WARN_EVERY_SECONDS
            log.warning("overloaded: %s: %s; refused since the last warning: %d", method.name, message, self._unlogged)
            self._unlogged = 0
        raise ServerOverloaded(message, retry_after=retry_after)
