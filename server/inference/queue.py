"""Requests that wait for a lane, in fair order, and their batches. Has no threads and no locks.

The order is the fair sojourn protocol (Friedman and Henderson, SIGMETRICS 2003): the request runs first that would
finish first if all shared the lanes equally. So a short request overtakes the rest of a long one and nothing starves,
but requests alike finish one after the other instead of all at the end. docs/notes/scheduling.md compares it with
shortest expected first with ageing, which loses half of its goodput under overload.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from server.inference.computation import Computation

_ALIKE = 1.5  # the greatest ratio between the costs in a batch: the shorter items are padded


class Item(NamedTuple):
    """One item of a request, and its place in the results."""

    request: "Request"
    place: int
    value: Any
    cost: float


class Request:
    """One caller's items, the most costly first, and what became of them. `arrived` and `deadline` are instants.

    `future` belongs to the caller.
    """

    def __init__(
        self, computation: Computation, values: Sequence[Any], arrived: float, deadline: float, future: Any = None
    ) -> None:
        self.computation = computation
        self.arrived = arrived
        self.deadline = deadline
        self.future = future
        self.results: list[Any] = [None] * len(values)
        self.error: BaseException | None = None
        self.ended = False
        self.wait_seconds = 0.0  # until the first item was started
        self.compute_seconds = 0.0  # its share of what was computed
        self._left = len(values)
        items = [Item(self, place, value, computation.cost(value)) for place, value in enumerate(values)]
        self.items = deque(sorted(items, key=lambda item: -item.cost))  # those that no lane has taken yet
        computation.counters.waiting += len(items)

    def take(self) -> Item:
        """Its next item, which is to be computed now."""
        self.computation.counters.waiting -= 1
        return self.items.popleft()

    def store(self, place: int, result: Any) -> None:
        """Keep a result; the last one ends the request."""
        self.results[place] = result
        self._left -= 1
        self.ended = self._left == 0

    def end(self, error: BaseException | None) -> int:
        """Drop the items that wait. Returns how many they were."""
        dropped = len(self.items)
        self.computation.counters.waiting -= dropped
        self.items.clear()
        self.error, self.ended = error, True
        return dropped


class RequestQueue:
    """Requests with items that no lane has taken. Those that ended are dropped when they come to the front."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._heap: list[tuple[float, int, Request]] = []
        self._numbers = itertools.count()
        self._virtual_time = 0.0  # seconds that each request would have got so far if all shared equally

    def push(self, request: Request) -> None:
        """Add a request that has items."""
        expected = sum(request.computation.expected_seconds(item.cost) for item in request.items)
        heapq.heappush(self._heap, (self._virtual_time + expected, next(self._numbers), request))

    def first(self) -> Request | None:
        """The request at the front; it has items."""
        while self._heap:
            if (request := self._heap[0][-1]).items:
                return request
            heapq.heappop(self._heap)
        return None

    def take_batch(self, request: Request, now: float) -> list[Item]:
        """The next item of `request`, and items of any requests that are worth running with it.

        It waits for nothing, and a batch has at most one lane's share of what waits: the other lanes may be free.
        """
        computation, batch = request.computation, [request.take()]
        max_items, max_cost = computation.batch_policy
        cost = batch[0].cost
        size = min(max_items, -(-(computation.counters.waiting + 1) // self._lanes)) if cost <= max_cost else 1
        for other in (request, *(other for *_, other in self._heap)) if size > 1 else ():
            if len(batch) == size:
                break
            if other.computation is computation and other.deadline > now:
                while len(batch) < size and other.items and _are_alike(cost, other.items[0].cost):
                    batch.append(other.take())
        seconds = sum(computation.expected_seconds(item.cost) for item in batch)
        self._virtual_time += seconds / len(self._heap)
        return batch

    def drain(self) -> list[Request]:
        """All requests; the queue is empty then."""
        requests = [request for *_, request in self._heap if request.items]
        self._heap.clear()
        return requests


def _are_alike(one: float, other: float) -> bool:
    return max(one, other) <= _ALIKE * min(one, other)
