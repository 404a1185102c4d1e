"""Metrics of computing: lanes, what they work at, and models in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import Metric

from server.domain.models import Described
from server.inference.scheduler import Scheduler
from server.models.handle import Handle, State
from server.models.memory_limit import MemoryLimit
from server.observability.families import counters, gauges, histograms


def lane_times(by_name: Mapping[str, Scheduler]) -> Iterator[Metric]:
    """Threads that compute, by what computes on them."""

    def each(attribute: str) -> list[tuple[tuple[str], Any]]:
        return [((name,), getattr(scheduler, attribute)) for name, scheduler in by_name.items()]

    yield gauges("quintet_lanes", "Threads that compute", ("lanes",), each("count"))
    yield gauges("quintet_lane_admitted", "Computations that run or wait", ("lanes",), each("admitted"))
    yield histograms("quintet_lane_wait_seconds", "Waiting for a lane", ("lanes",), each("waits"))
    yield histograms("quintet_lane_compute_seconds", "Computing on a lane", ("lanes",), each("computes"))


def works(lanes: Mapping[str, Scheduler]) -> Iterator[Metric]:
    """What the lanes count of each kind of work, most of which is that of one model."""
    works = [(name, work) for each in lanes.values() for name, work in each.counters.copy().items()]
    labels = ("work",)
    yield gauges("quintet_work_waiting", "Items in the queue", labels, (((n,), w.waiting) for n, w in works))
    yield counters(
        "quintet_work_batches",
        "Batches by the number of their items",
        ("work", "items"),
        (((n, str(size)), number) for n, w in works for size, number in w.batches.copy().items()),
    )
    for name, what in (
        ("wait_seconds", "Time that items waited for a lane"),
        ("compute_seconds", "Time on lanes"),
        ("wasted_seconds", "Time on lanes for callers that had gone"),
        ("expired", "Items not begun because they would have been late"),
        ("abandoned", "Items not begun because their caller had gone or their call had failed"),
        ("retried", "Items run alone after their batch had failed"),
        ("refused", "Calls that found the queue full"),
        ("cache_hits", "Texts whose result was kept"),
        ("cache_misses", "Texts whose result was not kept"),
    ):
        yield counters(f"quintet_work_{name}", what, labels, [((n,), getattr(w, name)) for n, w in works])
    yield gauges("quintet_work_cache_bytes", "Results that are kept", labels, (((n,), w.cache_bytes) for n, w in works))


def models(handles: Sequence[Handle[Any]], memory: MemoryLimit) -> Iterator[Metric]:
    """Which versions serve, and the memory they take."""
    ready = _each(handles, "state", lambda state: state is State.READY)
    yield gauges("quintet_model_ready", "1 if the model serves", ("model",), ready)
    described = [(each.name, each.loaded.description) for each in handles if isinstance(each.loaded, Described)]
    versions = [((name, model.identity.version, model.engine), 1) for name, model in described]
    yield gauges("quintet_model_info", "Which version serves", ("model", "version", "engine"), versions)
    sizes = [((name,), model.size_bytes) for name, model in described]
    yield gauges("quintet_model_size_bytes", "Size of the model's files", ("model",), sizes)
    managed = [each for each in handles if each.spec]
    taken = [*_each(managed, "memory_bytes"), *(((name,), size) for name, size in memory.by_name().items())]
    yield gauges("quintet_model_memory_bytes", "Memory that the model took when it was loaded", ("model",), taken)
    yield gauges("quintet_memory_in_use_bytes", "Memory of all models", (), [((), memory.in_use)])
    if memory.limit is not None:
        yield gauges("quintet_memory_budget_bytes", "What they may take", (), [((), memory.limit)])
    yield counters("quintet_model_loads", "Loads that succeeded", ("model",), _each(managed, "loads"))
    yield counters("quintet_model_failures", "Loads and checks that failed", ("model",), _each(managed, "failures"))


def _each(
    handles: Sequence[Handle[Any]], attribute: str, convert: Callable[[Any], float] = float
) -> list[tuple[tuple[str], float]]:
    return [((handle.name,), convert(getattr(handle, attribute))) for handle in handles]
