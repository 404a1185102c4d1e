"""A kind of computation, most often one model: what it costs, how far batching it helps, and what is counted of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_UNKNOWN_SECONDS = 0.001  # expected of an item without a cost


class BatchPolicy(NamedTuple):
    """Items run together if there are at most `max_items` of them and none costs more than `max_cost`."""

    max_items: int
    max_cost: float


UNBATCHED = BatchPolicy(1, 0)


@dataclass
class ComputationCounters:
    """Plain numbers that the metrics read. All but `waiting` and `cache_bytes` only grow. Times are seconds."""

    waiting: int = 0  # items in the queue now
    batches: Counter[int] = field(default_factory=Counter)  # number of batches by their size
    wait_seconds: float = 0.0  # of items that were started
    compute_seconds: float = 0.0  # on lanes
    wasted_seconds: float = 0.0  # the part of compute_seconds whose caller had gone
    expired: int = 0  # items dropped before compute because their deadline had passed or could not be met
    abandoned: int = 0  # items dropped before compute because their caller had gone or their request had failed
    retried: int = 0  # items run alone after their batch had failed
    refused: int = 0  # requests that found the queue full
    cache_hits: int = 0
    cache_misses: int = 0
    cache_bytes: int = 0  # in the cache now


@dataclass(eq=False)
class Computation:
    """`compute` makes one result of each of some items, on a lane.

    `counters` are the scheduler's for `name`: they outlive a model that is replaced. `cost` of an item is proportional
    to the seconds that it takes, or 0 if that is unknown.
    """

    name: str
    compute: Callable[[Sequence[Any]], Sequence[Any]]
    counters: ComputationCounters
    cost: Callable[[Any], float] = lambda _: 0.0
    batch_policy: BatchPolicy = UNBATCHED
    _pace: float = 0.0  # seconds a unit of cost, a moving average

    def observe(self, seconds: float, cost: float) -> None:
        """Learn the pace from a batch."""
        if cost:
            self._pace += 0.1 * (seconds / cost - self._pace) if self._pace else seconds / cost

    def expected_seconds(self, cost: float) -> float:
        """What an item of this cost usually takes."""
        return self._pace * cost if cost else _UNKNOWN_SECONDS

    def cannot_finish(self, cost: float, seconds: float) -> bool:
        """Whether an item usually takes longer than `seconds`.

        Each refusal lowers the expected pace, so that one slow run does not refuse tight deadlines for ever.
        """
        if seconds > self._pace * cost:
            return False
        self._pace *= 0.9
        return True
