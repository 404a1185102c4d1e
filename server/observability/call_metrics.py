"""Metrics of calls: how they ended, who was turned away and why."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import Metric

from server.domain.reloading_file import ReloadingFile
from server.observability.families import counters, gauges, histograms
from server.rpc.admission import Admission
from server.rpc.tenant_limits import TenantLimits


def calls(admission: Admission) -> Iterator[Metric]:
    """Calls that run, that ended, and that were refused on arrival."""
    methods = list(admission.methods.values())
    yield histograms(
        "rpc_server_call_duration_seconds",
        "Calls by method, status code and reason",
        ("rpc_system_name", "rpc_method", "rpc_response_status_code", "error_type"),
        (
            (("grpc", method.name[1:], code.name, reason), durations)
            for method in methods
            for (code, reason), durations in method.ended.copy().items()
        ),
    )
    yield gauges(
        "quintet_active_calls",
        "Calls that run",
        ("rpc_method",),
        (((method.name[1:],), method.running) for method in methods),
    )
    yield gauges(
        "quintet_admission_backlog_seconds",
        "Compute that the calls that run are expected to need",
        ("rpc_method",),
        (((method.name[1:],), method.backlog_seconds) for method in methods),
    )
    yield counters(
        "quintet_admission_refusals",
        "Calls refused on arrival",
        ("reason",),
        (((why,), number) for why, number in admission.refused.items()),
    )


def identity(refused: Mapping[str, int], followed: Sequence[ReloadingFile[Any]]) -> Iterator[Metric]:
    """Calls of strangers, and the files that tell who is none."""
    yield counters(
        "quintet_auth_refusals",
        "Calls of strangers, and of tenants that may not",
        ("reason",),
        (((reason,), number) for reason, number in refused.items()),
    )
    yield gauges(
        "quintet_file_broken",
        "1 if the latest tenants or certificates cannot be used and older ones still are",
        ("file",),
        (((file.what,), bool(file.problem)) for file in followed),
    )


def limiting(limits: TenantLimits) -> Iterator[Metric]:
    """What the limits of tenants refused, and whether this server decides alone."""
    yield counters(
        "quintet_limits_refusals",
        "Calls refused, once for each limit that they would have broken",
        ("tenant", "limit"),
        limits.refused.copy().items(),
    )
    yield histograms("quintet_limits_decision_seconds", "Deciding", (), [((), limits.decisions)])
    yield gauges("quintet_limits_degraded", "1 if this server decides alone", (), [((), limits.degraded)])
