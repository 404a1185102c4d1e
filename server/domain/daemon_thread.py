"""Blocking work beside the event loop, on threads that neither a stop nor the end of the process waits for."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThread:
    """One thread, which does one work after the other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._works: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns. A cancelled wait leaves running work to its end, and drops work that has not begun."""
        future: Future[T] = Future()
        self._works.put((future, work))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop what waits, and end after the running work."""
        self._closed.set()
        self._works.put(None)

    def join(self, seconds: float) -> bool:
        """Wait for the end after close(); False if the running work takes longer."""
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (item := self._works.get()) is not None:
            future, work = item
            if self._closed.is_set():
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, work, item  # a thread that waits keeps no engine alive


async def on_daemon_thread(name: str, work: Callable[[], T]) -> T:
    """What `work` returns, from a thread of its own."""
    thread = DaemonThread(name)
    try:
        return await thread.run(work)
    finally:
        thread.close()
