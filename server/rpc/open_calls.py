"""The calls that are open on the wire: from their headers until their status has been sent."""

import asyncio
import contextvars
import gc
from typing import Any

from server.domain.context import Context

# Enough to send a status to a client that reads.
_SECONDS_FOR_STATUS = 1.0
_SECONDS_TO_LEAVE = 0.05  # in which gRPC notices that the client has left, and ends the call itself
_HANDLER = "HandleExceptions"  # what the names of gRPC's tasks that run handlers begin with
_WAITS_FOR_CLIENT = "_schedule_rpc_coro"  # gRPC's coroutine that waits until client and handler have ended a call
_OF_NO_CALL = contextvars.Context()  # a timer that is cancelled may keep its context until it would have been due


class OpenCalls:
    """Ends calls on the wire when their deadline has passed. Use it on the event loop only."""

    def __init__(self) -> None:
        self._stuck: set[asyncio.Task[Any]] = set()  # to be closed in a moment

    def limit(self, call: Context) -> None:
        """The current task serves `call`, whose deadline is the server's own; at a client's gRPC ends the call."""
        task = asyncio.current_task()
        assert task is not None
        due = call.deadline + _SECONDS_FOR_STATUS
        timer = asyncio.get_running_loop().call_at(due, self._reset, task, context=_OF_NO_CALL)
        task.add_done_callback(lambda _: timer.cancel())

    async def ended(self, service_prefix: str, seconds: float) -> int:
        """Wait until the calls of services that are open now have ended, so many seconds at most; returns how many have
        not.
        """
        prefix = f"{_HANDLER}[/{service_prefix}"
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith(prefix)]
        if not tasks:
            return 0
        _, left = await asyncio.wait(tasks, timeout=seconds)
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
        stuck, self._stuck = self._stuck, set()
        for waiting in asyncio.all_tasks():
            coroutine = waiting.get_coro()
            if getattr(coroutine, "__name__", "") != _WAITS_FOR_CLIENT:
                continue
            found = gc.get_referents(*gc.get_referents(coroutine))
            if any(isinstance(each, asyncio.Task) and each in stuck for each in found):
                closed = getattr(waiting, "_fut_waiter", None)
                if isinstance(closed, asyncio.Future) and not isinstance(closed, asyncio.Task) and not closed.done():
                    closed.set_result(None)
                    # gRPC completes it again when the call has been reset, so it has to be incomplete by then.
                    loop.call_soon(_renew, closed)


def _renew(future: Any) -> None:
    future.__init__(loop=asyncio.get_running_loop())
