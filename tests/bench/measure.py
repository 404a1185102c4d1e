"""What the benchmarks of the engines share: repeated measurements and tables of ratios."""

import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

# As in `python -m server`: before any numeric library is imported.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MODELS = Path(os.environ.get("QUINTET_DATA", Path(__file__).parents[2] / "data")) / "models"
ROUNDS = 5


def soon() -> float:
    """A deadline that does not matter."""
    return time.monotonic() + 60


def seconds_each(work: Callable[[], object], count: int) -> float:
    """Median over rounds of the wall time of one call."""
    work()
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(count):
            work()
        rounds.append((time.perf_counter() - begun) / count)
    return statistics.median(rounds)


async def seconds_each_awaited(work: Callable[[], Awaitable[object]], count: int) -> float:
    """The same for a coroutine."""
    await work()
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(count):
            await work()
        rounds.append((time.perf_counter() - begun) / count)
    return statistics.median(rounds)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
