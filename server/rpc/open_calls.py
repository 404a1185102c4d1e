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

    def add(self, call: Context) -> None:
        """The current task, which is gRPC's, serves `call`."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not call.client_deadline:  # at a client's own deadline gRPC ends the call
            timer = asyncio.get_running_loop().call_at(call.deadline + _SECONDS_FOR_STATUS, _reset, task)
            task.add_done_callback(lambda _: timer.cancel())

    async def ended(self, seconds: float) -> int:
        """Wait until the calls that are open now have ended, so many seconds at most; returns how many have not."""
        if not self._tasks:
            return 0
        _, left = await asyncio.wait(self._tasks, timeout=seconds)
        return len(left)


async def reset_current() -> None:
    """End the current call, whose status could not be sent."""
    await asyncio.sleep(_SECONDS_TO_LEAVE)
    if task := asyncio.current_task():
        _reset(task)


def _reset(task: asyncio.Task[Any]) -> None:
    """End a call whose client does not read. gRPC sends its status after all messages, which is never.

    gRPC has no function for it, but it resets a call that the client has closed once the handler has ended. So this
    cancels the handler's task, and completes the future that says that the client has closed the call; the task of
    gRPC that waits for both is found by its reference to the first one. The search takes a while, but only clients
    that do not read cause it.
    """
    task.cancel()
    for waiting in asyncio.all_tasks():
        coroutine: Any = waiting.get_coro()
        if coroutine.__name__ == _WAITS_FOR_CLIENT and task in gc.get_referents(*gc.get_referents(coroutine)):
            closed = getattr(waiting, "_fut_waiter", None)
            if isinstance(closed, asyncio.Future) and closed is not task and not closed.done():
                closed.set_result(None)
                # gRPC completes it again when the call has been reset, so it has to be incomplete by then.
                asyncio.get_running_loop().call_soon(_renew, closed)


def _renew(future: Any) -> None:
    future.__init__(loop=asyncio.get_running_loop())
