"""Scheduler: the threads on which models compute, one a core, with a bounded queue in front.

A lane runs one single-threaded computation at a time, so two cores serve two requests at full speed and no
numeric library fights another for cores. numpy, onnxruntime, tokenizers and faiss release the GIL meanwhile. A lane
that is free takes its next work itself, without a way through the event loop, which hears of whole calls alone.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

from server.domain.context import charge
from server.domain.errors import DeadlineExceeded, ServerOverloaded, ServerStopping
from server.domain.histogram import Histogram
from server.domain.priority import LANES, step_back
from server.inference.counters import WorkCounters
from server.inference.queue import UNBATCHED, BatchPolicy, Call, Item, RequestQueue, Work

log = logging.getLogger(__name__)
T = TypeVar("T")


class Scheduler:
    """`count` threads and at most `queue_limit` waiting computations. Belongs to one event loop.

    The way to a lane and back costs 0.06 ms for a single caller, and 0.02 ms of CPU time a call for 64 at once (medians
    of five rounds of calls that do nothing, on two cores that others used, too): no more than a ThreadPoolExecutor.
    """

    def __init__(self, count: int, queue_limit: int) -> None:
        self.count = count
        self.counters: defaultdict[str, WorkCounters] = defaultdict(WorkCounters)  # by the name of the work
        self._singles: dict[str, Work] = {}
        self._limit = count + queue_limit
        self.admitted = 0  # computations that run or wait
        self.waits, self.computes = Histogram(), Histogram()  # seconds, of items and of batches
        self._closed = False
        self._queue = RequestQueue(count)
        self._lock = threading.Lock()  # guards the queue, all calls, all counters, and what follows
        self._idle = 0  # lanes that wait for a token and will find one
        self._tokens: SimpleQueue[None] = SimpleQueue()  # one wakes one lane; cheaper than a Condition
        self._finished: deque[Call] = deque()
        self._told = False  # that _deliver() is to come
        self._loop: asyncio.AbstractEventLoop | None = None
        # Threads that nobody closed must not keep the process from ending.
        self._threads = [threading.Thread(target=self._serve, name=f"lane_{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def work(
        self,
        name: str,
        compute: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        cost: Callable[[Any], float] = lambda _: 0.0,
        gathering: BatchPolicy = UNBATCHED,
    ) -> Work:
        """A kind of work for map(), counted under `name`."""
        return Work(compute, self.counters[name], name=name, cost=cost, gathering=gathering)

    async def run(self, work: Callable[[], T], *, deadline: float, name: str = "other") -> T:
        """Run `work` on a lane, counted under `name`, and return its result. Errors are those of map."""
        if (single := self._singles.get(name)) is None:
            single = self._singles[name] = self.work(name, lambda works: [work() for work in works])
        result: list[T] = await self.map(single, [work], deadline=deadline)
        return result[0]

    async def map(self, work: Work, items: Sequence[Any], *, deadline: float) -> list[Any]:
        """One result an item, in order, computed on all lanes in turns with the other calls.

        Raises ServerOverloaded at once if the queue is full, DeadlineExceeded if `deadline`, a time.monotonic()
        instant, passes before the last item is begun or leaves less time than it usually takes, and ServerStopping
        once the lanes are closed. A call is admitted as a whole; the first item that fails ends it. If the caller is
        cancelled, what waits is dropped; what has begun runs to its end and its result is thrown away.
        """
        if not items:
            return []
        self._loop = loop = asyncio.get_running_loop()
        with self._admit(work, min(self.count, len(items))):
            future = loop.create_future()
            with self._lock:
                if self._closed:
                    raise _stopping()
                call = Call(work, items, time.monotonic(), deadline, future)
                self._queue.push(call)
                self._wake(len(items))
            try:
                await future
            except asyncio.CancelledError:
                with self._lock:
                    work.counters.abandoned += call.end(None)
                raise
            finally:
                charge(queue=call.wait_seconds, compute=call.compute_seconds, part=work.name, arrived=call.arrived)
        if call.error:
            raise call.error
        return call.results

    def close(self) -> None:
        """Refuse what waits, and wait for what runs."""
        with self._lock:
            self._closed = True
            for call in self._queue.drain():
                self._end(call, _stopping())
            self._wake(self.count)
        for thread in self._threads:
            thread.join()

    @contextmanager
    def _admit(self, work: Work, width: int) -> Iterator[None]:
        if self._closed:
            raise _stopping()
        if self.admitted + width > self._limit:
            work.counters.refused += 1
            raise ServerOverloaded("all lanes are busy and their queue is full", retry_after=0.5)
        self.admitted += width
        try:
            yield
        finally:
            self.admitted -= width

    def _wake(self, wanted: int) -> None:
        """Let as many lanes look for work, if so many are idle."""
        for _ in range(min(wanted, self._idle)):
            self._idle -= 1
            self._tokens.put(None)

    # ------------------------------------------------------------ on the lanes' threads

    def _serve(self) -> None:
        step_back(LANES)
        while True:
            with self._lock:
                batch = self._next_batch()
                if not batch:
                    if self._closed:
                        return
                    self._idle += 1
            if batch:
                self._compute(batch)
            else:
                self._tokens.get()

    def _next_batch(self) -> list[Item]:
        """Take what is to be computed next, if anything is; drop what cannot be done in time."""
        while call := self._queue.pop():
            now = time.monotonic()
            counters = call.work.counters
            if call.work.cannot_finish(call.items[0].cost, call.deadline - now):
                counters.expired += self._end(call, _late())
                continue
            batch = self._queue.gather(call, now)
            if call.items:
                self._queue.put_back(call)
            counters.batches[len(batch)] += 1
            for item in batch:
                wait = now - item.call.arrived
                counters.wait_seconds += wait
                self.waits.add(wait)
                item.call.wait_seconds = item.call.wait_seconds or wait
            return batch
        return []

    def _compute(self, batch: list[Item]) -> None:
        """Compute and store. If a batch fails, its items are run alone, once: one of them may be to blame."""
        work, begun = batch[0].call.work, time.monotonic()
        results: Sequence[Any] = ()
        error: BaseException | None = None
        try:
            results = work.compute([item.value for item in batch])
            if len(results) != len(batch):
                error = RuntimeError(f"{len(results)} results for {len(batch)} items")
        except BaseException as failure:  # whatever it is, the lane lives on and the caller is told
            error = failure
        seconds = time.monotonic() - begun
        with self._lock:
            work.counters.compute_seconds += seconds
            self.computes.add(seconds)
            for item in batch:
                item.call.compute_seconds += seconds / len(batch)
            gone = sum(item.call.ended for item in batch)
            work.counters.wasted_seconds += seconds * gone / len(batch)
            if error is None:
                work.observe(seconds, sum(item.cost for item in batch))
                for item, result in zip(batch, results, strict=True):
                    self._store(item, result)
                return
            if len(batch) == 1:
                work.counters.abandoned += self._end(batch[0].call, error)
                return
            work.counters.retried += len(batch) - gone
        log.warning("a batch of %d failed and is run item by item", len(batch), exc_info=error)
        for item in batch:
            if not item.call.ended:
                self._compute([item])

    def _store(self, item: Item, result: Any) -> None:
        if not item.call.ended:
            item.call.store(item.index, result)
            if item.call.ended:
                self._tell(item.call)

    def _end(self, call: Call, error: BaseException) -> int:
        """Fail a call. Returns how many of its items still waited."""
        if call.ended:
            return 0
        dropped = call.end(error)
        self._tell(call)
        return dropped

    def _tell(self, call: Call) -> None:
        """Let the loop know that a call has ended, with one wake-up for all that end until it looks."""
        self._finished.append(call)
        if not self._told and self._loop is not None:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver)

    # ------------------------------------------------------------ on the loop

    def _deliver(self) -> None:
        self._told = False  # first: what is finished from now on is either seen below or told again
        while self._finished:
            call = self._finished.popleft()
            if not call.waiter.done():
                call.waiter.set_result(None)


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed, or is too near, while the call waited for a lane")


def _stopping() -> ServerStopping:
    return ServerStopping("the server is stopping")
