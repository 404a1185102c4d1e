"""Lanes: the threads on which models compute, one a core, with a bounded queue in front.

A lane runs one single-threaded computation at a time, so two cores serve two requests at full speed and no
numeric library fights another for cores. numpy, onnxruntime, tokenizers and faiss release the GIL meanwhile.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server.errors import DeadlineExceeded, ServerOverloaded

T = TypeVar("T")


class Lanes:
    """`count` threads and a queue of at most `queue_limit` waiting computations."""

    def __init__(self, count: int, queue_limit: int) -> None:
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._limit = count + queue_limit
        self._admitted = 0
        self._lock = threading.Lock()

    async def run(self, work: Callable[[], T], *, deadline: float) -> T:
        """Run `work` on a lane and return its result.

        Raises ServerOverloaded at once if the queue is full, and DeadlineExceeded if `deadline`, a
        time.monotonic() instant, passes before the work begins. Work that is cancelled while it waits is
        dropped; work that has begun runs to its end and its result is thrown away.
        """
        if self._admitted >= self._limit:
            raise ServerOverloaded("all lanes are busy and their queue is full", retry_after=0.5)
        with self._lock:
            self._admitted += 1
        future = self._executor.submit(_unless_late, work, deadline)
        future.add_done_callback(self._release)
        return await asyncio.wrap_future(future)

    def _release(self, _: object) -> None:
        with self._lock:  # it runs on the lane that finished, or on the loop for work that was cancelled
            self._admitted -= 1

    def close(self) -> None:
        """Drop what waits, and wait for what runs."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _unless_late(work: Callable[[], T], deadline: float) -> T:
    if time.monotonic() >= deadline:
        raise DeadlineExceeded("the deadline passed while the call waited for a lane")
    return work()
