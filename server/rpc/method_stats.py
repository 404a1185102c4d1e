"""How the calls of each method ended and how long they took, as plain numbers for metrics and as lines of the log.

Calls that succeed are logged at DEBUG, the others at INFO. Refusals that can come in floods (overload, limits, a ledger
that is away, no valid key) are logged at DEBUG, because logging them would cost more than refusing them.
"""

import logging
import time

import grpc

from server.domain.context import Context
from server.domain.errors import BudgetExhausted, LedgerUnavailable, QuotaExceeded, ServerOverloaded, Unauthenticated
from server.domain.histogram import Histogram

log = logging.getLogger("server.access")
OK = grpc.StatusCode.OK
_REFUSALS = (ServerOverloaded, Unauthenticated, QuotaExceeded, BudgetExhausted, LedgerUnavailable)
_QUIET = frozenset(each.reason for each in _REFUSALS)


class Method:
    """One RPC method. Written on the event loop only; other threads may read. `lanes` are those that compute for it."""

    def __init__(self, name: str, lanes: int) -> None:
        self.name = name
        self.lanes = lanes
        self.running = 0
        self.ended: dict[tuple[grpc.StatusCode, str], Histogram] = {}  # durations in seconds by code and reason
        # Kept by Admission: compute expected of the running calls, and the average for a byte of a request.
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
