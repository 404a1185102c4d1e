"""Threads for the blocking work on collections: so many for each purpose, so that none keeps another waiting.

They are daemon threads: the end of the process does not wait for them. What they leave unfinished is never read.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_IDLE_SECONDS = 10.0  # after which a thread without work ends


class Threads:
    """Up to `count` threads that run work in the order in which it comes."""

    def __init__(self, purpose: str, count: int) -> None:
        self._purpose = purpose
        self._count = count
        self._started = 0
        self._unfinished = 0  # works that wait or run
        self._lock = threading.Lock()
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work`. A cancelled caller leaves it: it is dropped if it has not begun, and ends by itself otherwise."""
        return await asyncio.wrap_future(self._submit(work))

    async def run_to_end(self, work: Callable[[], T]) -> T:
        """Run what must not be left half done: a cancellation is passed on after its end."""
        future = asyncio.wrap_future(self._submit(work))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            raise

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._queue.put((future, work))
            self._unfinished += 1
            if self._unfinished > self._started < self._count:
                self._started += 1
                threading.Thread(target=self._serve, daemon=True, name=f"collections-{self._purpose}").start()
        return future

    def _serve(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._queue.empty():
                        self._started -= 1
                        return
                continue
            _run(*item)
            del item
            with self._lock:
                self._unfinished -= 1


def _run(future: Future[T], work: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        finally:
            del future, work  # the error's traceback has this frame
