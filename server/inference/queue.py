"""Calls that wait for a lane, in fair order, and the gathering of their items into batches. Knows no threads.

The order is that of the fair sojourn protocol (Friedman and Henderson, SIGMETRICS 2003): calls are computed in the
order in which they would end if all of them were computed side by side, with equal shares. So a short call goes before
the rest of a long one, as with equal shares, and every call's turn comes; but calls alike end one after the other
instead of all together at the end, and when callers give up, little is lost in calls that were half done.

The clock shows the seconds that each call would have got so far. A call's tag is the clock when it comes plus the
seconds that its items are expected to take; what a batch takes, divided by the calls that are there, moves the clock.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from server.inference.counters import WorkCounters


class BatchPolicy(NamedTuple):
    """How far running items together helps: up to `at_once`, each of a cost up to `below`."""

    at_once: int
    below: float


UNBATCHED = BatchPolicy(1, 0)
_UNKNOWN_SECONDS = 0.001  # what work without a cost counts for
_LIKE = 1.5  # the greatest ratio between the costs of items that are gathered: the shorter are padded


class Work:
    """A kind of work: `compute` makes one result of each of some items.

    `cost` is proportional to the seconds that an item takes, or 0 if nobody knows.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Any]], Sequence[Any]],
        counters: WorkCounters,
        *,
        name: str = "",
        cost: Callable[[Any], float] = lambda _: 0.0,
        gathering: BatchPolicy = UNBATCHED,
    ) -> None:
        self.compute = compute
        self.counters = counters
        self.name = name
        self.cost = cost
        self.gathering = gathering
        self._pace = 0.0

    def observe(self, seconds: float, cost: float) -> None:
        """Learn how fast it is, from a batch."""
        if cost:
            self._pace += 0.1 * (seconds / cost - self._pace) if self._pace else seconds / cost

    def expected_seconds(self, cost: float) -> float:
        """What an item usually takes."""
        return self._pace * cost if cost else _UNKNOWN_SECONDS

    def cannot_finish(self, cost: float, seconds: float) -> bool:
        """Whether an item usually takes longer than `seconds`.

        Whenever it says so it expects less the next time: one slow run must not refuse tight deadlines for ever.
        """
        if seconds > self._pace * cost:
            return False
        self._pace *= 0.9
        return True


@dataclass(frozen=True, slots=True)
class Item:
    """One of the items of a call."""

    call: "Call"
    index: int
    value: Any
    cost: float


class Call:
    """One caller's items, the most costly first, and what became of them. `arrived` and `deadline` are instants.

    `waiter` is for whoever made the call.
    """

    def __init__(self, work: Work, values: Sequence[Any], arrived: float, deadline: float, waiter: Any = None) -> None:
        self.work = work
        self.waiter = waiter
        self.arrived = arrived
        self.deadline = deadline
        self.results: list[Any] = [None] * len(values)
        self.error: BaseException | None = None
        self.ended = False
        self.place = 0.0, 0  # in the queue: its tag, and which call it is among equals
        self.wait_seconds = 0.0  # until the first item was begun
        self.compute_seconds = 0.0  # its share of what was computed
        self._left = len(values)
        items = [Item(self, index, value, work.cost(value)) for index, value in enumerate(values)]
        self.items = deque(sorted(items, key=lambda item: -item.cost))
        work.counters.waiting += len(items)

    def take(self) -> Item:
        """Its next item, which is to be computed now."""
        self.work.counters.waiting -= 1
        return self.items.popleft()

    def store(self, index: int, result: Any) -> None:
        """Keep a result; the last one ends the call."""
        self.results[index] = result
        self._left -= 1
        self.ended = self._left == 0

    def end(self, error: BaseException | None) -> int:
        """Give it up. Returns how many of its items still waited."""
        dropped = len(self.items)
        self.work.counters.waiting -= dropped
        self.items.clear()
        self.error, self.ended = error, True
        return dropped


class RequestQueue:
    """Calls that have items left. Those that end while they wait are dropped when their turn comes."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._heap: list[tuple[tuple[float, int], Call]] = []
        self._numbers = itertools.count()
        self._clock = 0.0

    def push(self, call: Call) -> None:
        """Add a call; it has items."""
        tag = self._clock + sum(call.work.expected_seconds(item.cost) for item in call.items)
        call.place = tag, next(self._numbers)
        self.put_back(call)

    def put_back(self, call: Call) -> None:
        """Add a call that was popped; it has items left, and keeps its place."""
        heapq.heappush(self._heap, (call.place, call))

    def pop(self) -> Call | None:
        """The call whose turn it is, if any. Put it back if it has items left."""
        while self._heap:
            _, call = heapq.heappop(self._heap)
            if call.items:
                return call
        return None

    def gather(self, call: Call, now: float) -> list[Item]:
        """The next item of `call`, and what is worth to be run with it, of whichever calls.

        Nothing is waited for, and no lane takes more than its share of what is there: the others may be free.
        """
        batch = self._gathered(call, now)
        seconds = sum(item.call.work.expected_seconds(item.cost) for item in batch)
        self._clock += seconds / (len(self._heap) + 1)
        return batch

    def _gathered(self, call: Call, now: float) -> list[Item]:
        work, batch = call.work, [call.take()]
        at_once, below = work.gathering
        cost = batch[0].cost
        room = min(at_once, -(-(work.counters.waiting + 1) // self._lanes)) - 1
        if room <= 0 or cost > below:
            return batch
        for other in itertools.chain([call], (other for _, other in self._heap)):
            if not room:
                break
            if other.work is work and other.deadline > now:
                while room and other.items and _are_alike(cost, other.items[0].cost):
                    batch.append(other.take())
                    room -= 1
        return batch

    def drain(self) -> list[Call]:
        """Everything that waits; the queue is empty then."""
        calls = [call for _, call in self._heap if call.items]
        self._heap.clear()
        return calls


def _are_alike(one: float, other: float) -> bool:
    return max(one, other) <= _LIKE * min(one, other)
