"""Prometheus metrics on a port of their own, read from plain numbers when they are scraped: calls pay nothing.

Names and attributes are OpenTelemetry's (`rpc.server.*`, `gen_ai.*`) in the spelling of Prometheus; what they do not
cover begins with `quintet_`. Scrapes are answered on a thread of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server

from server.domain.reloading_file import ReloadingFile
from server.inference.scheduler import Scheduler
from server.models.handle import Handle
from server.models.memory_limit import MemoryLimit
from server.observability import call_metrics, chat_metrics, model_metrics
from server.rpc.admission import Admission
from server.rpc.tenant_limits import TenantLimits
from server.usage.ledger import SqlLedger

if TYPE_CHECKING:
    from server.tasks.chat.openai_upstream import Upstream


class Collector:
    """Everything that is published, gathered anew for each scrape."""

    def __init__(
        self,
        admission: Admission,
        lanes: Mapping[str, Scheduler],
        handles: Sequence[Handle[Any]],
        memory: MemoryLimit,
        *,
        upstreams: "Mapping[str, Upstream]" = MappingProxyType({}),
        auth_refused: Mapping[str, int] = MappingProxyType({}),
        followed: Sequence[ReloadingFile[Any]] = (),
        limits: TenantLimits | None = None,
        ledger: SqlLedger | None = None,
    ) -> None:
        self._admission = admission
        self._memory = memory
        self._lanes = lanes
        self._handles = handles
        self._auth_refused = auth_refused
        self._followed = followed
        self._limits = limits
        self._upstreams = upstreams
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """All metrics with their current values."""
        yield from call_metrics.calls(self._admission)
        yield from call_metrics.identity(self._auth_refused, self._followed)
        if self._limits is not None:
            yield from call_metrics.limiting(self._limits)
        yield from model_metrics.lane_times(self._lanes)
        yield from model_metrics.works(self._lanes)
        yield from model_metrics.models(self._handles, self._memory)
        yield from chat_metrics.upstreams(self._upstreams.values())
        yield from chat_metrics.breakers(self._upstreams.values())
        if self._ledger is not None:
            yield from chat_metrics.ledger(self._ledger)


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
