"""Metrics of computing: lanes, what they work at, and models in memory."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import Metric

from server.inference.scheduler import Scheduler
from server.models.handle import Handle, State
from server.models.loading import MemoryLimit
from server.observability.families import counters, gauges, histograms


def lane_times(schedulers: Mapping[str, Scheduler]) -> Iterator[Metric]:
    """Threads that compute, by what computes on them."""
    for family, name, what, attribute in (
        (gauges, "quintet_lanes", "Threads that compute", "count"),
        (gauges, "quintet_lane_admitted", "Computations that run or wait", "admitted"),
        (histograms, "quintet_lane_wait_seconds", "Waiting for a lane", "waits"),
        (histograms, "quintet_lane_compute_seconds", "Computing on a lane", "computes"),
    ):
        yield family(name, what, "lanes", {lanes: getattr(each, attribute) for lanes, each in schedulers.items()})


def works(schedulers: Mapping[str, Scheduler]) -> Iterator[Metric]:
    """What the lanes count of each kind of work, most of which is that of one model."""
    works = {name: work for each in schedulers.values() for name, work in each.counters.copy().items()}
    batches = {(n, str(size)): number for n, w in works.items() for size, number in w.batches.copy().items()}
    yield counters("quintet_work_batches", "Batches by the number of their items", "work items", batches)
    for family, name, what in (
        (gauges, "waiting", "Items in the queue"),
        (counters, "wait_seconds", "Time that items waited for a lane"),
        (counters, "compute_seconds", "Time on lanes"),
        (counters, "wasted_seconds", "Time on lanes for callers that had gone"),
        (counters, "expired", "Items not begun because they would have been late"),
        (counters, "abandoned", "Items not begun because their caller had gone or their call had failed"),
        (counters, "retried", "Items run alone after their batch had failed"),
        (counters, "refused", "Calls that found the queue full"),
        (counters, "cache_hits", "Texts whose result was kept"),
        (counters, "cache_misses", "Texts whose result was not kept"),
        (gauges, "cache_bytes", "Results that are kept"),
    ):
        yield family(f"quintet_work_{name}", what, "work", {n: getattr(w, name) for n, w in works.items()})


def models(handles: Sequence[Handle[Any]], memory: MemoryLimit) -> Iterator[Metric]:
    """Which versions serve, and the memory they take."""
    ready = {each.name: each.state is State.READY for each in handles}
    yield gauges("quintet_model_ready", "1 if the model serves", "model", ready)
    described = [(each.name, known) for each in handles if (known := each.description)]
    versions = {(name, model.identity.version, model.engine): 1 for name, model in described}
    yield gauges("quintet_model_info", "Which version serves", "model version engine", versions)
    sizes = {name: model.size_bytes for name, model in described}
    yield gauges("quintet_model_size_bytes", "Size of the model's files", "model", sizes)
    managed = [each for each in handles if each.spec]
    elsewhere = {holder: size for holder, size in memory.held.copy().items() if isinstance(holder, str)}
    taken = {each.name: each.memory_bytes for each in managed} | elsewhere
    yield gauges("quintet_model_memory_bytes", "Memory that the model took when it was loaded", "model", taken)
    yield gauges("quintet_memory_in_use_bytes", "Memory of all models", "", {(): memory.in_use})
    if memory.limit is not None:
        yield gauges("quintet_memory_budget_bytes", "What they may take", "", {(): memory.limit})
    for name, what in (("loads", "Loads that succeeded"), ("failures", "Loads and checks that failed")):
        yield counters(f"quintet_model_{name}", what, "model", {each.name: getattr(each, name) for each in managed})
