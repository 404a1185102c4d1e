"""Prometheus metrics on a port of their own, read from plain numbers when they are scraped: calls pay nothing.

Names and attributes are OpenTelemetry's (`rpc.server.*`, `gen_ai.*`) in the spelling of Prometheus; what they do not
cover begins with `quintet_`. Scrapes are answered on a thread of their own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from server.engines.interfaces import Described
from server.interceptors.admission import Admission
from server.interceptors.limits import TenantLimits
from server.runtime.breaker import Breaker
from server.runtime.budget import Budget
from server.runtime.followed import Followed
from server.runtime.generations import Generations
from server.runtime.histogram import Histogram
from server.runtime.lanes import Lanes
from server.runtime.models import ModelSlot, Slot, State

Rows = Iterable[tuple[Sequence[str], Any]]  # values of the labels, and the number or the histogram


class ChatLeg(Protocol):
    """A model of a provider."""

    @property
    def name(self) -> str:
        """What the model is called."""
        ...

    @property
    def breaker(self) -> Breaker:
        """The provider's."""
        ...

    @property
    def generations(self) -> Generations:
        """The model's."""
        ...


class Collector:
    """Everything that is published, gathered anew for each scrape."""

    def __init__(
        self,
        admission: Admission,
        lanes: Mapping[str, Lanes],
        slots: Sequence[Slot[Any]],
        budget: Budget,
        *,
        legs: Mapping[str, ChatLeg] = MappingProxyType({}),
        auth_refused: Mapping[str, int] = MappingProxyType({}),
        followed: Sequence[Followed[Any]] = (),
        limits: TenantLimits | None = None,
    ) -> None:
        self._admission = admission
        self._budget = budget
        self._lanes = lanes
        self._slots = slots
        self._auth_refused = auth_refused
        self._followed = followed
        self._limits = limits
        self._legs = legs

    def collect(self) -> Iterator[Metric]:
        """All metrics with their current values."""
        yield from self._calls()
        yield from self._identity()
        yield from self._computing()
        yield from self._working()
        yield from self._models()
        yield from self._generating()
        yield from self._breakers()
        if self._limits is not None:
            yield from _limiting(self._limits)

    def _calls(self) -> Iterator[Metric]:
        methods = list(self._admission.methods.values())
        yield _histograms(
            "rpc_server_call_duration_seconds",
            "Calls by method, status code and reason",
            ("rpc_system_name", "rpc_method", "rpc_response_status_code", "error_type"),
            (
                (("grpc", method.name[1:], code.name, reason), durations)
                for method in methods
                for (code, reason), durations in method.ended.copy().items()
            ),
        )
        yield _gauges(
            "quintet_active_calls",
            "Calls that run",
            ("rpc_method",),
            (((method.name[1:],), method.running) for method in methods),
        )
        yield _gauges(
            "quintet_admission_backlog_seconds",
            "Compute that the calls that run are expected to need",
            ("rpc_method",),
            (((method.name[1:],), method.backlog_seconds) for method in methods),
        )
        yield _counters(
            "quintet_admission_refusals",
            "Calls refused on arrival",
            ("reason",),
            (((why,), number) for why, number in self._admission.refused.items()),
        )

    def _identity(self) -> Iterator[Metric]:
        yield _counters(
            "quintet_auth_refusals",
            "Calls of strangers, and of tenants that may not",
            ("reason",),
            (((reason,), number) for reason, number in self._auth_refused.items()),
        )
        yield _gauges(
            "quintet_file_broken",
            "1 if the latest tenants or certificates cannot be used and older ones still are",
            ("file",),
            (((file.what,), bool(file.problem)) for file in self._followed),
        )

    def _computing(self) -> Iterator[Metric]:
        lanes = self._lanes.items()
        yield _gauges(
            "quintet_lanes", "Threads that compute", ("lanes",), (((name,), each.count) for name, each in lanes)
        )
        yield _gauges(
            "quintet_lane_admitted",
            "Computations that run or wait",
            ("lanes",),
            (((name,), each.admitted) for name, each in lanes),
        )
        yield _histograms(
            "quintet_lane_wait_seconds",
            "Waiting for a lane",
            ("lanes",),
            (((name,), each.waits) for name, each in lanes),
        )
        yield _histograms(
            "quintet_lane_compute_seconds",
            "Computing on a lane",
            ("lanes",),
            (((name,), each.computes) for name, each in lanes),
        )

    def _working(self) -> Iterator[Metric]:
        """What the lanes count of each kind of work, most of which is that of one model."""
        works = [(name, work) for lanes in self._lanes.values() for name, work in lanes.counters.copy().items()]
        labels = ("work",)
        yield _gauges("quintet_work_waiting", "Items in the queue", labels, (((n,), w.waiting) for n, w in works))
        yield _counters(
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
            yield _counters(f"quintet_work_{name}", what, labels, [((n,), getattr(w, name)) for n, w in works])
        yield _gauges(
            "quintet_work_cache_bytes", "Results that are kept", labels, (((n,), w.cache_bytes) for n, w in works)
        )

    def _models(self) -> Iterator[Metric]:
        yield _gauges(
            "quintet_model_ready",
            "1 if the model serves",
            ("model",),
            (((slot.name,), slot.state is State.READY) for slot in self._slots),
        )
        described = [(slot.name, slot.loaded.description) for slot in self._slots if isinstance(slot.loaded, Described)]
        yield _gauges(
            "quintet_model_info",
            "Which version serves",
            ("model", "version", "engine"),
            (((name, model.identity.version, model.engine), 1) for name, model in described),
        )
        yield _gauges(
            "quintet_model_size_bytes",
            "Size of the model's files",
            ("model",),
            (((name,), model.size_bytes) for name, model in described),
        )

        pooled = [slot for slot in self._slots if isinstance(slot, ModelSlot)]
        yield _gauges(
            "quintet_model_memory_bytes",
            "Memory that the model took when it was loaded",
            ("model",),
            [
                *(((slot.name,), slot.resident.bytes if slot.resident else 0) for slot in pooled),
                *(((name,), size) for name, size in self._budget.others().items()),
            ],
        )
        yield _gauges("quintet_memory_in_use_bytes", "Memory of all models", (), [((), self._budget.in_use)])
        if self._budget.limit is not None:
            yield _gauges("quintet_memory_budget_bytes", "What they may take", (), [((), self._budget.limit)])
        yield _counters(
            "quintet_model_loads", "Loads that succeeded", ("model",), (((slot.name,), slot.loads) for slot in pooled)
        )
        yield _counters(
            "quintet_model_failures",
            "Loads and checks that failed",
            ("model",),
            (((slot.name,), slot.failures) for slot in pooled),
        )

    def _generating(self) -> Iterator[Metric]:
        found = [(("chat", leg.breaker.name, leg.name), leg.generations) for leg in list(self._legs.values())]
        labels = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
        yield _histograms(
            "gen_ai_client_token_usage",
            "Tokens of a generation",
            (*labels, "gen_ai_token_type"),
            (
                row
                for names, each in found
                for row in (((*names, "input"), each.input_tokens), ((*names, "output"), each.output_tokens))
            ),
        )
        yield _histograms(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "From asking the endpoint to its first token",
            labels,
            ((names, each.time_to_first_token) for names, each in found),
        )
        yield _histograms(
            "gen_ai_client_operation_duration_seconds",
            "Generations that came to their end",
            labels,
            ((names, each.durations) for names, each in found),
        )

    def _breakers(self) -> Iterator[Metric]:
        breakers = {leg.breaker.name: leg.breaker for leg in list(self._legs.values())}.items()
        yield _gauges(
            "quintet_provider_breaker_state",
            "0 closed: it is asked; 1 half open: it is asked once; 2 open: it is left alone",
            ("gen_ai_provider_name",),
            (((name,), breaker.state.value) for name, breaker in breakers),
        )
        yield _counters(
            "quintet_provider_breaker_openings",
            "How often it was left alone because it had failed again and again",
            ("gen_ai_provider_name",),
            (((name,), breaker.opened) for name, breaker in breakers),
        )


def _limiting(limits: TenantLimits) -> Iterator[Metric]:
    yield _counters(
        "quintet_limits_refusals",
        "Calls refused, once for each limit that they would have broken",
        ("tenant", "limit"),
        limits.refused.copy().items(),
    )
    yield _histograms("quintet_limits_decision_seconds", "Deciding", (), [((), limits.decisions)])
    yield _gauges("quintet_limits_degraded", "1 if this server decides alone", (), [((), limits.degraded)])


@contextmanager
def serving(host: str, port: int, collector: Collector) -> Iterator[int]:
    """Answer GET /metrics while the body runs; yields the port. Raises OSError if it is in use."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    server, thread = start_http_server(port, host.strip("[]"), registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _histograms(name: str, what: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = HistogramMetricFamily(name, what, labels=labels)
    for values, histogram in rows:
        family.add_metric(values, _buckets(histogram), histogram.total)
    return family


def _gauges(name: str, what: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, what, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _counters(name: str, what: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = CounterMetricFamily(name, what, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _buckets(histogram: Histogram) -> list[Any]:
    """Cumulative counts up to each bound, as Prometheus wants them."""
    found, below = [], 0
    for bound, number in zip((*histogram.bounds, "+Inf"), list(histogram.counts), strict=True):
        below += number
        found.append((str(bound), below))
    return found
