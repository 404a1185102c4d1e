"""One line of log a call: method, status, milliseconds. What succeeds is logged at DEBUG, the rest at INFO."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from server.calls import Call

log = logging.getLogger("server.access")


class Outcome:
    """Filled in by whoever ends the call."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""


@contextmanager
def observe(call: Call) -> Iterator[Outcome]:
    """Time the call and log how it ended, cancelled ones too: for those the context's code is None."""
    outcome = Outcome()
    start = time.perf_counter()
    try:
        yield outcome
    except (asyncio.CancelledError, GeneratorExit):
        if outcome.code is grpc.StatusCode.OK:
            outcome.code = grpc.StatusCode.CANCELLED
        raise
    finally:
        level = logging.DEBUG if outcome.code is grpc.StatusCode.OK else logging.INFO
        if log.isEnabledFor(level):
            took = (time.perf_counter() - start) * 1000
            log.log(level, "%s %s %s %.1f ms", call.method, outcome.code.name, outcome.reason or "-", took)
