"""Lanes: the threads on which models compute, one a core, with a bounded queue in front.

A lane runs one single-threaded computation at a time, so two cores serve two requests at full speed and no
numeric library fights another for cores. numpy, onnxruntime, tokenizers and faiss release the GIL meanwhile.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from server import calls
from server.errors import DeadlineExceeded, ServerOverloaded, ServerStopping
from server.runtime.histogram import Histogram

T = TypeVar("T")


class Lanes:
    """`count` threads and at most `queue_limit` waiting computations. Belongs to one event loop."""

    def __init__(self, count: int, queue_limit: int) -> None:
        self.count = count
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._limit = count + queue_limit
        self.admitted = 0  # computations that run or wait
        self.waits, self.computes = Histogram(), Histogram()  # seconds of what ran
        self._closed = False

    async def run(self, work: Callable[[], T], *, deadline: float) -> T:
        """Run `work` on a lane and return its result.

        Raises ServerOverloaded at once if the queue is full, DeadlineExceeded if `deadline`, a time.monotonic()
        instant, passes before the work begins, and ServerStopping once the lanes are closed. Work that is
        cancelled while it waits is dropped; work that has begun runs to its end and its result is thrown away.
        """
        with self._admit(1):
            return await self._submit(work, deadline)

    async def run_all(self, works: Sequence[Callable[[], T]], *, deadline: float) -> list[T]:
        """Run the parts of one request on all lanes and return their results in order.

        Parts are handed in as lanes become free, one a lane at a time, so that a large request takes turns with
        the others instead of going before them. It is admitted as a whole: once begun, it is not refused. The first
        part that fails ends the request. Errors are those of `run`.
        """
        parts = iter(list(enumerate(works)))
        results: dict[int, T] = {}

        async def take_turns() -> None:
            for index, work in parts:
                results[index] = await self._submit(work, deadline)

        width = min(self.count, len(works))
        with self._admit(width):
            takers = [asyncio.create_task(take_turns()) for _ in range(width)]
            try:
                await asyncio.gather(*takers)
            finally:
                for taker in takers:
                    taker.cancel()
        return [results[index] for index in range(len(works))]

    def close(self) -> None:
        """Refuse what waits, and wait for what runs."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _admit(self, width: int) -> Iterator[None]:
        if self._closed:
            raise _stopping()
        if self.admitted + width > self._limit:
            raise ServerOverloaded("all lanes are busy and their queue is full", retry_after=0.5)
        self.admitted += width
        try:
            yield
        finally:
            self.admitted -= width

    async def _submit(self, work: Callable[[], T], deadline: float) -> T:
        if self._closed:
            raise _stopping()
        handed_in = time.monotonic()
        future = self._executor.submit(_timed, work, deadline)
        try:
            result, begun, ended = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _stopping() from None  # close() cancelled the work, nobody cancelled the caller
            raise
        self.waits.add(begun - handed_in)
        self.computes.add(ended - begun)
        calls.charge(queue=begun - handed_in, compute=ended - begun)
        return result


def _timed(work: Callable[[], T], deadline: float) -> tuple[T, float, float]:
    """What `work` returns, and when it began and ended. Work that is late is not begun."""
    if (begun := time.monotonic()) >= deadline:
        raise DeadlineExceeded("the deadline passed while the call waited for a lane")
    return work(), begun, time.monotonic()


def _stopping() -> ServerStopping:
    return ServerStopping("the server is stopping")
