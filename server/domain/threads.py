"""Threads for blocking work beside the event loop: so many for each purpose, so that none keeps another waiting.

They are daemon threads: neither a stop nor the end of the process waits for them.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_IDLE_SECONDS = 10.0


class Threads:
    """Up to `count` threads that run work in the order in which it comes, and end after `idle_seconds` without work."""

    def __init__(self, name: str, count: int = 1, *, idle_seconds: float | None = _IDLE_SECONDS) -> None:
        self.name = name
        self._count = count
        self._idle_seconds = idle_seconds
        self._started = 0
        self._unfinished = 0  # works that wait or run
        self._is_closed = False
        self._changed = threading.Condition()  # of the four above
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work`. A cancelled caller leaves it: it is dropped if it has not begun, and ends by itself otherwise."""
        return await asyncio.wrap_future(self.submit(work))

    async def run_to_end(self, work: Callable[[], T]) -> T:
        """Run what must not be left half done: a cancellation is passed on after its end."""
        future = asyncio.wrap_future(self.submit(work))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()  # the caller does not hear it
            raise

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """The same for callers without an event loop."""
        future: Future[T] = Future()
        with self._changed:
            self._queue.put((future, work))
            self._unfinished += 1
            if self._unfinished > self._started < self._count:
                self._started += 1
                threading.Thread(target=self._serve, daemon=True, name=self.name).start()
        return future

    def close(self) -> None:
        """Drop what waits, and end after the running work."""
        with self._changed:
            self._is_closed = True
            for _ in range(self._started):
                self._queue.put(None)

    def join(self, seconds: float) -> bool:
        """Wait for the end after close(); False if running work takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._started, max(0.0, seconds))

    def _serve(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=self._idle_seconds)
            except Empty:
                item = None
            if item is None:
                with self._changed:
                    if self._is_closed or self._queue.empty():
                        self._started -= 1
                        self._changed.notify_all()
                        return
                continue
            if self._is_closed:
                item[0].cancel()
            _run(*item)
            del item  # a thread that waits keeps nothing alive
            with self._changed:
                self._unfinished -= 1


async def on_thread(name: str, work: Callable[[], T]) -> T:
    """What `work` returns, from a thread of its own."""
    return await Threads(name, idle_seconds=0).run(work)


def _run(future: Future[T], work: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        finally:
            del future, work  # the error's traceback has this frame
