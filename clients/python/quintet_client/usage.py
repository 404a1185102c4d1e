"""The client's methods for usage. `aio_usage.py` has the same as coroutines."""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime
from functools import cached_property

from quintet.v1 import usage_pb2, usage_pb2_grpc

from quintet_client import inputs
from quintet_client.caller import Caller


class Usage(Caller):
    """What calls consumed and cost. Times without a zone are local."""

    @cached_property
    def _usage(self) -> usage_pb2_grpc.UsageServiceStub:
        return usage_pb2_grpc.UsageServiceStub(self._channel)

    def get_usage(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        tenant: str | None = None,
        service: str | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> usage_pb2.GetUsageResponse:
        """Sums by day, tenant, service ("ChatService") and model, of the last 30 days unless told otherwise."""
        chosen = inputs.usage_filter(since, until, tenant, service, model)
        return self._unary(self._usage.GetUsage, usage_pb2.GetUsageRequest(filter=chosen), timeout)

    def list_usage(
        self,
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
    ) -> usage_pb2.ListUsageResponse:
        """A page of single calls, newest first; `next_page_token` brings the next one."""
        request = usage_pb2.ListUsageRequest(
            filter=inputs.usage_filter(since, until, tenant, service, model),
            page_size=page_size,
            page_token=page_token,
            request_id=request_id,
        )
        return self._unary(self._usage.ListUsage, request, timeout)

    def watch_usage(self, *, timeout: float | None = None) -> Generator[usage_pb2.WatchUsageResponse, None, None]:
        """Every call that the server settles from now on, then done when it stops. It needs the role admin."""
        return self._stream(self._usage.WatchUsage, usage_pb2.WatchUsageRequest(), timeout)
