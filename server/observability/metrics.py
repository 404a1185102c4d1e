"""Prometheus metrics on their own port, read at each scrape from plain numbers, so that calls pay nothing for them.

Names and labels are OpenTelemetry's (`rpc.server.*`, `gen_ai.*`) in Prometheus's spelling; other names begin with
`quintet_`. A thread answers the scrapes.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server

from server.domain.reloading_file import ReloadingFile
from server.domain.supervision import restarts
from server.inference.scheduler import Scheduler
from server.models.handle import Handle, State
from server.models.loading import MemoryLimit
from server.models.mirroring import Mirror
from server.observability.families import counters, gauges, histograms
from server.observability.trace_export import TraceExport
from server.rpc.admission import Admission
from server.rpc.certificates import Certificates
from server.rpc.listener import CannotStart, address, why_not
from server.rpc.tenant_limits import TenantLimits
from server.usage.writer import Writer

if TYPE_CHECKING:
    from server.tasks.chat.openai_upstream import Upstream

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Collector:
    """All metrics, with their values at the time of each scrape."""

    admission: Admission
    schedulers: Mapping[str, Scheduler]
    handles: Sequence[Handle[Any]]
    memory: MemoryLimit
    upstreams: "Mapping[str, Upstream]" = field(default_factory=dict)
    auth_refused: Mapping[str, int] = field(default_factory=dict)
    files: Sequence[ReloadingFile[Any]] = ()
    limits: TenantLimits | None = None
    ledger: Writer | None = None
    registry: Mirror | None = None
    collections: Callable[[], Mapping[str, Sequence[str]]] = dict  # what is wrong with each
    traces: TraceExport | None = None

    def collect(self) -> Iterator[Metric]:
        yield from calls(self.admission)
        yield from authentication(self.auth_refused, self.files)
        if self.limits is not None:
            yield from tenant_limits(self.limits)
        yield from lane_times(self.schedulers)
        yield from works(self.schedulers)
        yield from models(self.handles, self.memory)
        if self.registry is not None and self.registry.has_registry:
            what = "1 while the model registry cannot be asked: what is on disk is served"
            yield gauges("quintet_registry_away", what, "", {(): bool(self.registry.away)})
        yield from upstreams(list(self.upstreams.values()))
        if self.ledger is not None:
            yield from ledger(self.ledger)
        degraded = {name: bool(faults) for name, faults in self.collections().items()}
        what = "1 if files of the collection are damaged or cannot be read"
        yield gauges("quintet_collection_degraded", what, "collection", degraded)
        if self.traces is not None:
            yield gauges("quintet_traces_away", "1 while the collector takes no traces", "", {(): self.traces.away})
            yield counters("quintet_traces_lost_spans", "Spans that it did not take", "", {(): self.traces.lost})
        what = "Restarts of background tasks that failed"
        yield counters("quintet_background_restarts", what, "task", restarts.copy())


@contextmanager
def serving(host: str, port: int, collector: Collector) -> Iterator[int]:
    """Answer GET /metrics while the body runs; yields the port. Raises CannotStart."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError:
        why = why_not(host, port, "QUINTET_METRICS_PORT")
        raise CannotStart(f"cannot publish metrics on {address(host, port)}: {why}") from None
    log.info("metrics on http://%s/metrics", address(host, server.server_port))
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def calls(admission: Admission) -> Iterator[Metric]:
    """Calls that run, that ended, and that admission refused."""
    methods = {method.name[1:]: method for method in list(admission.methods.values())}
    durations = {
        ("grpc", name, code.name, reason): durations
        for name, method in methods.items()
        for (code, reason), durations in method.ended.copy().items()
    }
    labels = "rpc_system_name rpc_method rpc_response_status_code error_type"
    yield histograms("rpc_server_call_duration_seconds", "Calls by method, status code and reason", labels, durations)
    running = {name: method.running for name, method in methods.items()}
    yield gauges("quintet_active_calls", "Running calls", "rpc_method", running)
    backlog = {name: method.backlog_seconds for name, method in methods.items()}
    what = "Compute that the running calls are expected to need"
    yield gauges("quintet_admission_backlog_seconds", what, "rpc_method", backlog)
    yield counters("quintet_admission_refusals", "Calls refused on arrival", "reason", admission.refused)


def authentication(refused: Mapping[str, int], files: Sequence[ReloadingFile[Any]]) -> Iterator[Metric]:
    """Refusals of authentication and authorization, and the state of the files that these need."""
    what = "Calls without valid credentials or without permission"
    yield counters("quintet_auth_refusals", what, "reason", refused)
    what = "1 if the latest tenants or certificates are invalid and the older ones stay in use"
    yield gauges("quintet_file_broken", what, "file", {file.what: bool(file.problem) for file in files})
    ends = {path: end for file in files if isinstance(file, Certificates) for path, end in file.ends.items()}
    what = "When the first of a file's current certificates expires, in seconds since the epoch"
    yield gauges("quintet_certificate_expires_timestamp_seconds", what, "file", ends)


def tenant_limits(limits: TenantLimits) -> Iterator[Metric]:
    """Refusals by the tenants' limits, and whether this server decides alone."""
    what = "Calls refused, once for each limit that had no room"
    yield counters("quintet_limits_refusals", what, "tenant limit", limits.refused.copy())
    yield histograms("quintet_limits_decision_seconds", "Time of decisions", "", {(): limits.decisions})
    yield gauges("quintet_limits_degraded", "1 if this server decides alone", "", {(): limits.limiter.degraded})


def ledger(writer: Writer) -> Iterator[Metric]:
    """Whether calls can be accounted."""
    what = "1 while it cannot be written to: calls that cost are refused"
    yield gauges("quintet_ledger_away", what, "", {(): writer.away})
    yield gauges("quintet_ledger_waiting", "New and settled entries not yet being written", "", {(): writer.waiting})


def upstreams(found: "Collection[Upstream]") -> Iterator[Metric]:
    """Tokens and times of complete answers, and circuit breakers by provider."""
    statistics = {("chat", each.breaker.name, each.name): each.statistics for each in found}
    labels = "gen_ai_operation_name gen_ai_provider_name gen_ai_request_model"
    tokens = {
        (*names, kind): tokens
        for names, each in statistics.items()
        for kind, tokens in (("input", each.input_tokens), ("output", each.output_tokens))
    }
    what = "Tokens of a prompt or an answer"
    yield histograms("gen_ai_client_token_usage", what, f"{labels} gen_ai_token_type", tokens)
    first = {names: each.time_to_first_token for names, each in statistics.items()}
    what = "From asking the endpoint to its first token"
    yield histograms("gen_ai_client_operation_time_to_first_chunk_seconds", what, labels, first)
    durations = {names: each.durations for names, each in statistics.items()}
    what = "From asking the endpoint to the end of a complete answer"
    yield histograms("gen_ai_client_operation_duration_seconds", what, labels, durations)
    states = {each.breaker.name: each.breaker.state.value for each in found}
    what = "0 closed: the provider is asked; 1 half open: one call probes it; 2 open: it is not asked"
    yield gauges("quintet_provider_breaker_state", what, "gen_ai_provider_name", states)
    openings = {each.breaker.name: each.breaker.opened for each in found}
    what = "How often it opened because the provider failed repeatedly"
    yield counters("quintet_provider_breaker_openings", what, "gen_ai_provider_name", openings)


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
    what = "1 if the version that should serve does not, or another one serves instead"
    yield gauges("quintet_model_outdated", what, "model", {each.name: bool(each.wanted) for each in handles})
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
