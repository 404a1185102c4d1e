"""The calls that are open on the wire: from their headers until their status has been sent."""

import asyncio
import gc
from typing import Any

from server.domain.context import Context

# Enough to send a status to a client that reads.
_SECONDS_FOR_STATUS = 1.0
_SECONDS_TO_LEAVE = 0.05  # in which gRPC notices that the client has left, and ends the call itself
_WAITS_FOR_CLIENT = "_schedule_rpc_coro"  # gRPC's coroutine that waits until client and handler have ended a call


class OpenCalls:
    """Ends calls on the wire when their deadline has passed. Use it on the event loop only."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stuck: set[asyncio.Task[Any]] = set()  # to be closed in a moment

    def add(self, call: Context) -> None:
        """The current task, which is gRPC's, serves `call`."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not call.client_deadline:  # at a client's own deadline gRPC ends the call
            timer = asyncio.get_running_loop().call_at(call.deadline + _SECONDS_FOR_STATUS, self._reset, task)
            task.add_done_callback(lambda _: timer.cancel())

    async def ended(self, seconds: float) -> int:
        """Wait until the calls that are open now have ended, so many seconds at most; returns how many have not."""
        if not self._tasks:
            return 0
        _, left = await asyncio.wait(self._tasks, timeout=seconds)
        return len(left)

    async def reset_current(self) -> None:
        """End the current call, whose status could not be sent."""
        await asyncio.sleep(_SECONDS_TO_LEAVE)
        if task := asyncio.current_task():
            self._close(task)

    def _reset(self, task: asyncio.Task[Any]) -> None:
        """End a call whose client does not read: gRPC sends its status after all messages, which is never."""
        task.cancel()
        self._close(task)

    def _close(self, task: asyncio.Task[Any]) -> None:
        """A call that the client has closed is reset by gRPC once the handler's task has ended.

        It has no other function for it. So this completes, in a moment, the future that says that the client has closed
        the call.
        """
        if not self._stuck:
            asyncio.get_running_loop().call_soon(self._close_stuck)
        self._stuck.add(task)

    def _close_stuck(self) -> None:
        """The tasks of gRPC that wait for client and handler are found by their references to the handlers' tasks."""
        loop = asyncio.get_running_loop()
        for waiting in asyncio.all_tasks():
            coroutine: Any = waiting.get_coro()
            if coroutine.__name__ != _WAITS_FOR_CLIENT:
                continue
            found = gc.get_referents(*gc.get_referents(coroutine))
            if any(isinstance(each, asyncio.Task) and each in self._stuck for each in found):
                closed = getattr(waiting, "_fut_waiter", None)
                if isinstance(closed, asyncio.Future) and not isinstance(closed, asyncio.Task) and not closed.done():
                    closed.set_result(None)
                    # gRPC completes it again when the call has been reset, so it has to be incomplete by then.
                    loop.call_soon(_renew, closed)
        self._stuck.clear()


def _renew(future: Any) -> None:
    future.__init__(loop=asyncio.get_running_loop())
