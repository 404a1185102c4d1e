"""Models, usage, the server's own state."""

from __future__ import annotations

from datetime import datetime

from grpc_health.v1 import health_pb2
from quintet.v1 import model_pb2, usage_pb2

from quintet_client import inputs
from quintet_client.calls import LOAD, OPEN, Call, StreamCall, Stubs
from quintet_client.messages import make


def list_models(stubs: Stubs, *, timeout: float | None = None) -> Call[model_pb2.ListModelsResponse]:
    """List every model of the server, loaded or not."""
    return Call(stubs.models.ListModels, model_pb2.ListModelsRequest(), timeout)


def get_model(stubs: Stubs, name: str, *, timeout: float | None = None) -> Call[model_pb2.GetModelResponse]:
    """Describe one model: labels, features, metrics, licence."""
    return Call(stubs.models.GetModel, make(model_pb2.GetModelRequest, name=name), timeout)


def load_model(stubs: Stubs, name: str, *, timeout: float | None = None) -> Call[model_pb2.LoadModelResponse]:
    """Load a model into memory."""
    return Call(stubs.models.LoadModel, make(model_pb2.LoadModelRequest, name=name), timeout, LOAD)


def unload_model(stubs: Stubs, name: str, *, timeout: float | None = None) -> Call[model_pb2.UnloadModelResponse]:
    """Free a model's memory once the calls that use it have ended; the next call that needs it loads it again."""
    return Call(stubs.models.UnloadModel, make(model_pb2.UnloadModelRequest, name=name), timeout)


def reload_model(stubs: Stubs, name: str, *, timeout: float | None = None) -> Call[model_pb2.ReloadModelResponse]:
    """Read and check a model's files again, and serve their present content."""
    return Call(stubs.models.ReloadModel, make(model_pb2.ReloadModelRequest, name=name), timeout, LOAD)


def set_alias(
    stubs: Stubs, name: str, alias: str, target: str, *, force: bool = False, timeout: float | None = None
) -> Call[model_pb2.SetAliasResponse]:
    """Move the alias "current" or "candidate" to a version or to another alias's version ("previous" rolls back).

    "current" moves only to a version that gives the recorded outputs for its golden inputs, unless `force` is given.
    """
    request = make(model_pb2.SetAliasRequest, name=name, alias=alias, target=target, force=force)
    return Call(stubs.models.SetAlias, request, timeout, LOAD)


def watch_models(stubs: Stubs, *, timeout: float | None = None) -> StreamCall[model_pb2.WatchModelsResponse]:
    """Stream all models, then each that changes, then done when the server stops. Closing the iterator ends it."""
    return StreamCall(stubs.models.WatchModels, model_pb2.WatchModelsRequest(), timeout, OPEN)


def server_info(stubs: Stubs, *, timeout: float | None = None) -> Call[model_pb2.GetServerInfoResponse]:
    """Describe the server: version, limits, and the state of every service with its reason."""
    return Call(stubs.models.GetServerInfo, model_pb2.GetServerInfoRequest(), timeout)


def get_usage(
    stubs: Stubs,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    tenant: str | None = None,
    service: str | None = None,
    model: str | None = None,
    timeout: float | None = None,
) -> Call[usage_pb2.GetUsageResponse]:
    """Sum usage by day, tenant, service ("ChatService") and model; by default of the last 30 days.

    Times without a zone are local.
    """
    request = make(usage_pb2.GetUsageRequest, filter=inputs.usage_filter(since, until, tenant, service, model))
    return Call(stubs.usage.GetUsage, request, timeout)


def list_usage(
    stubs: Stubs,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    tenant: str | None = None,
    service: str | None = None,
    model: str | None = None,
    request_id: str | None = None,
    page_size: int | None = None,
    page_token: str | None = None,
    timeout: float | None = None,
) -> Call[usage_pb2.ListUsageResponse]:
    """List a page of single calls, newest first; `next_page_token` requests the next page."""
    request = make(
        usage_pb2.ListUsageRequest,
        filter=inputs.usage_filter(since, until, tenant, service, model),
        page_size=page_size,
        page_token=page_token,
        request_id=request_id,
    )
    return Call(stubs.usage.ListUsage, request, timeout)


def watch_usage(stubs: Stubs, *, timeout: float | None = None) -> StreamCall[usage_pb2.WatchUsageResponse]:
    """Stream every call that the server settles from now on, then done when it stops. Requires the role admin."""
    return StreamCall(stubs.usage.WatchUsage, usage_pb2.WatchUsageRequest(), timeout, OPEN)


def check_health(stubs: Stubs, service: str, *, timeout: float | None = None) -> Call[health_pb2.HealthCheckResponse]:
    """Check one service by grpc.health.v1."""
    return Call(stubs.health.Check, make(health_pb2.HealthCheckRequest, service=service), timeout)
