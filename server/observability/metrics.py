"""Prometheus metrics on their own port, read at each scrape from plain numbers, so that calls pay nothing for them.

Names and labels are OpenTelemetry's (`rpc.server.*`, `gen_ai.*`) in Prometheus's spelling; other names begin with
`quintet_`. A thread answers the scrapes.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server

from server.domain.reloading_file import ReloadingFile
from server.inference.scheduler import Scheduler
from server.models.handle import Handle
from server.models.loading import MemoryLimit
from server.observability import call_metrics, chat_metrics, model_metrics
from server.rpc.admission import Admission
from server.rpc.listener import PortInUse
from server.rpc.tenant_limits import TenantLimits
from server.usage.writer import Writer

if TYPE_CHECKING:
    from server.tasks.chat.openai_upstream import Upstream

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Collector:
    """All metrics, with their values at the time of each scrape."""

    admission: Admission
    lanes: Mapping[str, Scheduler]
    handles: Sequence[Handle[Any]]
    memory: MemoryLimit
    upstreams: "Mapping[str, Upstream]" = field(default_factory=dict)
    auth_refused: Mapping[str, int] = field(default_factory=dict)
    files: Sequence[ReloadingFile[Any]] = ()
    limits: TenantLimits | None = None
    ledger: Writer | None = None

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        yield from call_metrics.calls(self.admission)
        yield from call_metrics.authentication(self.auth_refused, self.files)
        if self.limits is not None:
            yield from call_metrics.tenant_limits(self.limits)
        yield from model_metrics.lane_times(self.lanes)
        yield from model_metrics.works(self.lanes)
        yield from model_metrics.models(self.handles, self.memory)
        yield from chat_metrics.upstreams(list(self.upstreams.values()))
        if self.ledger is not None:
            yield from chat_metrics.ledger(self.ledger)


@contextmanager
def serving(host: str, port: int, collector: Collector) -> Iterator[int]:
    """Answer GET /metrics while the body runs; yields the port. Raises PortInUse."""
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, host.strip("[]"), registry)
    except OSError:
        what = f"cannot publish metrics on {host}:{port}"
        raise PortInUse(f"{what}: in use? Set QUINTET_METRICS_PORT to another port") from None
    log.info("metrics on http://%s:%d/metrics", host, server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
