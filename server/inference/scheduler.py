"""Scheduler: lanes, the threads on which models compute, one a core, with a bounded queue in front.

A lane runs one single-threaded computation at a time, so two cores serve two requests at full speed and numeric
libraries do not compete for cores. numpy, onnxruntime, tokenizers and faiss release the GIL meanwhile. A free lane
takes its next batch itself; the event loop is notified once a request.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from server.domain.context import charge
from server.domain.errors import DeadlineExceeded, ServerOverloaded, ServerStopping
from server.domain.histogram import Histogram
from server.domain.priority import LANES, step_back
from server.inference.computation import Computation, ComputationCounters
from server.inference.queue import Item, Request, RequestQueue

log = logging.getLogger(__name__)
T = TypeVar("T")


class Scheduler:
    """`count` lanes and at most `queue_limit` waiting computations. Belongs to one event loop."""

    def __init__(self, count: int, queue_limit: int) -> None:
        self.count = count
        self.counters: defaultdict[str, ComputationCounters] = defaultdict(ComputationCounters)  # by computation
        self.admitted = 0  # computations that run or wait
        self.waits, self.computes = Histogram(), Histogram()  # seconds, of items and of batches
        self._limit = count + queue_limit
        self._closed = False
        self._queue = RequestQueue(count)
        self._ready = threading.Condition()  # guards all but `admitted`, and wakes idle lanes
        # Daemons: a scheduler that was not closed must not keep the process from ending.
        self._threads = [threading.Thread(target=self._serve, name=f"lane_{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    async def run(self, function: Callable[[], T], *, deadline: float, name: str = "other") -> T:
        """Run `function` on a lane, counted under `name`, and return its result. Errors are those of map."""
        computation = Computation(name, lambda functions: [each() for each in functions], self.counters[name])
        result: list[T] = await self.map(computation, [function], deadline=deadline)
        return result[0]

    async def map(self, computation: Computation, items: Sequence[Any], *, deadline: float) -> list[Any]:
        """One result an item, in order, computed on all lanes and interleaved with other requests.

        Raises ServerOverloaded at once if the queue is full, DeadlineExceeded if `deadline`, a time.monotonic()
        instant, passes before the last item is started or leaves less time than it usually takes, and ServerStopping
        once the scheduler is closed. A request is admitted as a whole; the first item that fails ends it. If the
        caller is cancelled, waiting items are dropped; running ones finish and their results are discarded.
        """
        if not items:
            return []
        width = min(self.count, len(items))
        if not self._closed and self.admitted + width > self._limit:
            computation.counters.refused += 1
            raise ServerOverloaded("all lanes are busy and their queue is full", retry_after=0.5)
        self.admitted += width
        try:
            with self._ready:
                if self._closed:
                    raise _stopping()
                future = asyncio.get_running_loop().create_future()
                request = Request(computation, items, time.monotonic(), deadline, future)
                self._queue.push(request)
                self._ready.notify(width)
            try:
                await future
            except asyncio.CancelledError:
                with self._ready:
                    computation.counters.abandoned += request.end(None)
                raise
            finally:
                waited, computed = request.wait_seconds, request.compute_seconds
                charge(queue=waited, compute=computed, part=computation.name, arrived=request.arrived)
        finally:
            self.admitted -= width
        if request.error:
            raise request.error
        return request.results

    def close(self) -> None:
        """Refuse what waits, and wait for what runs."""
        with self._ready:
            self._closed = True
            for request in self._queue.drain():
                _fail(request, _stopping())
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()

    # ------------------------------------------------------------ on the lanes' threads

    def _serve(self) -> None:
        step_back(LANES)
        while True:
            with self._ready:
                while not (batch := self._next_batch()):
                    if self._closed:
                        return
                    self._ready.wait()
            self._compute(batch)

    def _next_batch(self) -> list[Item]:
        """Take what is to be computed next, if anything is; fail requests that cannot finish in time."""
        while request := self._queue.first():
            now = time.monotonic()
            counters = request.computation.counters
            if request.computation.cannot_finish(request.items[0].cost, request.deadline - now):
                late = DeadlineExceeded("the deadline passed, or is too near, while the request waited for a lane")
                counters.expired += _fail(request, late)
                continue
            batch = self._queue.take_batch(request, now)
            counters.batches[len(batch)] += 1
            for item in batch:
                wait = now - item.request.arrived
                counters.wait_seconds += wait
                self.waits.add(wait)
                item.request.wait_seconds = item.request.wait_seconds or wait
            return batch
        return []

    def _compute(self, batch: list[Item]) -> None:
        """Compute and store. If a batch fails, its items are run alone, once: one of them may be the cause."""
        computation, begun = batch[0].request.computation, time.monotonic()
        results: Sequence[Any] = ()
        error: BaseException | None = None
        try:
            results = computation.compute([item.value for item in batch])
            if len(results) != len(batch):
                error = RuntimeError(f"{len(results)} results for {len(batch)} items")
        except BaseException as failure:  # whatever it is, the lane lives on and the caller is told
            error = failure
        seconds = time.monotonic() - begun
        counters = computation.counters
        with self._ready:
            counters.compute_seconds += seconds
            self.computes.add(seconds)
            gone = sum(item.request.ended for item in batch)
            counters.wasted_seconds += seconds * gone / len(batch)
            for item in batch:
                item.request.compute_seconds += seconds / len(batch)
            if error is None:
                computation.observe(seconds, sum(item.cost for item in batch))
                for (request, place, *_), result in zip(batch, results, strict=True):
                    if not request.ended:
                        request.store(place, result)
                        if request.ended:
                            _notify(request)
                return
            if len(batch) == 1:
                counters.abandoned += _fail(batch[0].request, error)
                return
            counters.retried += len(batch) - gone
        log.warning("a batch of %d failed and is run item by item", len(batch), exc_info=error)
        for item in batch:
            if not item.request.ended:
                self._compute([item])


def _fail(request: Request, error: BaseException) -> int:
    """Returns how many items still waited."""
    if request.ended:
        return 0
    dropped = request.end(error)
    _notify(request)
    return dropped


def _notify(request: Request) -> None:
    """Wake the caller of a request that has ended."""
    future = request.future
    with contextlib.suppress(RuntimeError):  # the loop is closed: the caller has gone
        future.get_loop().call_soon_threadsafe(lambda: future.done() or future.set_result(None))


def _stopping() -> ServerStopping:
    return ServerStopping("the server is stopping")
