"""Metrics of calls: how they ended, and how many were refused and why."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import Metric

from server.domain.reloading_file import ReloadingFile
from server.observability.families import counters, gauges, histograms
from server.rpc.admission import Admission
from server.rpc.tenant_limits import TenantLimits


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


def tenant_limits(limits: TenantLimits) -> Iterator[Metric]:
    """Refusals by the tenants' limits, and whether this server decides alone."""
    what = "Calls refused, once for each limit that had no room"
    yield counters("quintet_limits_refusals", what, "tenant limit", limits.refused.copy())
    yield histograms("quintet_limits_decision_seconds", "Time of decisions", "", {(): limits.decisions})
    yield gauges("quintet_limits_degraded", "1 if this server decides alone", "", {(): limits.limiter.degraded})
