"""Bounds the requests that are being received: in time, and in memory.

gRPC buffers a request until its last byte has arrived, and takes no more than 64 KiB of it before it is asked to read.
So the caller is found before the request is received, and only so many requests are received at once.
"""

import asyncio
import ctypes
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

from server.domain.context import Context
from server.domain.errors import (
    DeadlineExceeded,
    InvalidRequest,
    QuintetError,
    ServerOverloaded,
    ServerStopping,
    Violation,
)

SECONDS = 10.0  # from a call's headers to the last byte of its first message
# A small request arrives with its headers, so that a burst of them is over before one of them is refused.
_LOOK_SECONDS = 0.1
_CANCELLATION_SECONDS = 0.05
_FREED_SECONDS = 1.0  # until gRPC has freed what it had received of ended calls
_TRIM_SECONDS = 3.0  # between two times that memory is given back
_LATE = "the request did not arrive in time: before the deadline, and within 10 s of the call's headers"


class _Waiting:
    """A task that waits for a message of `caller`, until a time.monotonic() instant."""

    __slots__ = ("caller", "error", "is_first", "task", "until", "was_seen")

    def __init__(self, caller: str, until: float, is_first: bool) -> None:
        self.caller = caller
        self.until = until
        self.is_first = is_first
        self.task = asyncio.current_task()
        self.was_seen = False  # whether it waited when they were looked at the last time
        self.error: QuintetError | None = None  # why it was ended

    def end(self, error: QuintetError) -> None:
        if self.error is None and self.task is not None:
            self.error = error
            self.task.cancel()


class Receiving:
    """Receives up to `limit` requests at once; if there are more, the caller that sends most of them loses its oldest.

    Use it on the event loop only. Calls that wait are looked at now and then, because a timer for each would cost more
    than everything else here.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: dict[_Waiting, None] = {}  # in the order of their arrival
        self._looking: asyncio.TimerHandle | None = None
        self._ended = False  # whether calls were ended since memory was last given back
        self._next_trim = 0.0

    async def one(self, context: Any, call: Context) -> tuple[bytes, int]:
        """The only message of a call, and its size. Raises also InvalidRequest if there is none."""
        payload = await self.message(context, call.caller.tenant, _latest(call))
        if payload is None:
            await asyncio.sleep(_CANCELLATION_SECONDS)  # this task is cancelled now if the client cancelled the call
            raise InvalidRequest([Violation("", "the call ended without a request")])
        return payload, len(payload)

    async def each(self, context: Any, call: Context) -> tuple[AsyncIterator[bytes], int]:
        """The messages of a call one by one; their sizes are not known."""
        return self._each(context, call), 0

    async def _each(self, context: Any, call: Context) -> AsyncIterator[bytes]:
        caller = call.caller.tenant
        payload = await self.message(context, caller, _latest(call))
        while payload is not None:
            yield payload
            payload = await self.message(context, caller, call.deadline, is_first=False)

    async def message(self, context: Any, caller: str, until: float, *, is_first: bool = True) -> bytes | None:
        """The next message of a call; None if there are no more. `until` is a time.monotonic() instant.

        Raises DeadlineExceeded, ServerOverloaded, or ServerStopping.
        """
        waiting = _Waiting(caller, until, is_first)
        self._waiting[waiting] = None
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if waiting.error is None or waiting.task is None:
                raise
            waiting.task.uncancel()
            raise waiting.error from None
        finally:
            del self._waiting[waiting]
        return None if message is grpc.aio.EOF else message

    def stop(self) -> None:
        """End the calls that have not begun; those that wait for a later message may finish."""
        for waiting in self._waiting:
            if waiting.is_first:
                waiting.end(ServerStopping("the server is stopping", retry_after=1.0))

    def _look(self) -> None:
        """End what waits for too long, and what is too much: only calls that were seen twice, because after a pause of
        the event loop a request may have come already.
        """
        now = time.monotonic()
        for each in self._waiting:
            if each.until <= now:
                each.end(DeadlineExceeded(_LATE))
                self._ended = True
        waiting = [each for each in self._waiting if each.error is None]
        surplus = len(waiting) - self._limit
        if surplus > 0:
            for caller, number in Counter(each.caller for each in waiting).most_common():
                for each in [each for each in waiting if each.caller == caller and each.was_seen][: max(surplus, 0)]:
                    each.end(ServerOverloaded(f"{number} requests are being received", retry_after=1.0))
                    surplus -= 1
                    self._ended = True
        elif self._ended and now >= self._next_trim:
            self._ended, self._next_trim = False, now + _TRIM_SECONDS
            asyncio.get_running_loop().call_later(_FREED_SECONDS, _give_memory_back)
        for each in waiting:
            each.was_seen = True
        again = self._waiting or self._ended
        self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look) if again else None


def _latest(call: Context) -> float:
    """When the first message must have arrived."""
    return min(call.started + SECONDS, call.deadline)


def _give_memory_back() -> None:
    """The C library keeps freed memory, and more of it after each burst. Giving it back takes some milliseconds."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        threading.Thread(target=trim, args=[0], name="malloc_trim").start()
