"""What is counted of each kind of work. Plain numbers: whoever exports metrics reads them when asked."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class WorkCounters:
    """Of one kind of work, for instance one model. They only grow, but for `waiting`.

    An item is one text, or one computation that is not gathered. Times are seconds.
    """

    waiting: int = 0  # items in the queue now
    batches: Counter[int] = field(default_factory=Counter)  # how many batches there were of each size
    wait_seconds: float = 0.0  # of items that were begun
    compute_seconds: float = 0.0  # of lanes
    wasted_seconds: float = 0.0  # the part of compute_seconds whose caller had gone
    expired: int = 0  # items dropped before compute because their deadline had passed or could not be met
    abandoned: int = 0  # items dropped before compute because their caller had gone or their call had failed
    retried: int = 0  # items that were run alone after their batch had failed
    refused: int = 0  # calls that found the queue full
    cache_hits: int = 0
    cache_misses: int = 0
    cache_bytes: int = 0  # in the cache now
