"""What is known of every method: how its calls ended and how long they took, in plain numbers, and a line of log each.

What succeeds is logged at DEBUG, the rest at INFO; refusals under load, by limits and of strangers are DEBUG, too,
because logging them would cost more than refusing them. `server/metrics` publishes the numbers.
"""

import logging
import time

import grpc

from server.domain.context import Context
from server.domain.errors import BudgetExhausted, QuotaExceeded, ServerOverloaded, Unauthenticated
from server.domain.histogram import Histogram

log = logging.getLogger("server.access")
OK = grpc.StatusCode.OK
_QUIET = frozenset({ServerOverloaded.reason, Unauthenticated.reason, QuotaExceeded.reason, BudgetExhausted.reason})


class Method:
    """One RPC method. Used on the event loop alone; others may read. `lanes` are those that compute for it."""

    def __init__(self, name: str, lanes: int) -> None:
        self.name = name
        self.lanes = lanes
        self.running = 0
        self.ended: dict[tuple[grpc.StatusCode, str], Histogram] = {}  # durations in seconds by code and reason
        # Kept by admission: seconds of compute expected of the calls that run, and what a byte of a request costs.
        self.backlog_seconds = 0.0
        self.seconds_per_byte = 0.0

    def end(self, call: Context, code: grpc.StatusCode, reason: str) -> None:
        """Count and log a call that ended; `reason` is empty if it succeeded or was cancelled."""
        took = time.monotonic() - call.started
        durations = self.ended.get((code, reason))
        if durations is None:
            durations = self.ended[code, reason] = Histogram()
        durations.add(took)
        level = logging.DEBUG if code is OK or reason in _QUIET else logging.INFO
        if log.isEnabledFor(level):
            fields = {
                "method": self.name[1:],
                "code": code.name,
                "reason": reason,
                "ms": round(took * 1000, 1),
                "queue_ms": round(call.queue_seconds * 1000, 1),
                "compute_ms": round(call.compute_seconds * 1000, 1),
                "upstream_ms": round(call.upstream_seconds * 1000, 1),
                "tenant": call.caller.tenant,
            }
            line = "%(method)s %(code)s %(reason)s %(ms).1f ms"
            log.log(level, line, {**fields, "reason": reason or "-"}, extra={"fields": fields})
