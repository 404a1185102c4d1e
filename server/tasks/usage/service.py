"""quintet.v1.UsageService"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import common_pb2, usage_pb2, usage_pb2_grpc

from server.domain.context import current
from server.domain.errors import InvalidRequest, PermissionDenied, Violation
from server.rpc.service_spec import ANY_ROLE, FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role
from server.usage.ledger import LedgerReader, Record, Selection, Sum, Watching

_DEFAULT_DAYS = 30
_PAGE = 100
_MAX_SUMS = 10_000  # about 1 MB


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """What was consumed, from the ledger."""

    def __init__(self, reader: LedgerReader, settled: Watching) -> None:
        self._reader = reader
        self._settled = settled

    async def GetUsage(self, request: usage_pb2.GetUsageRequest, context: Any) -> usage_pb2.GetUsageResponse:
        """Sums."""
        sums = await self._reader.sums(_selection(request.filter), _MAX_SUMS + 1)
        if len(sums) > _MAX_SUMS:
            raise InvalidRequest([Violation("filter", f"matches more than {_MAX_SUMS} sums; ask for a shorter time")])
        return usage_pb2.GetUsageResponse(sums=map(_sum, sums))

    async def ListUsage(self, request: usage_pb2.ListUsageRequest, context: Any) -> usage_pb2.ListUsageResponse:
        """A page; its token is the last id."""
        selection = _selection(request.filter, request.request_id if request.HasField("request_id") else None)
        size = request.page_size or _PAGE
        found = await self._reader.records(selection, before=request.page_token, limit=size + 1)
        return usage_pb2.ListUsageResponse(
            records=map(_record, found[:size]), next_page_token=found[size - 1].id if len(found) > size else ""
        )

    async def WatchUsage(
        self, request: usage_pb2.WatchUsageRequest, context: Any
    ) -> AsyncIterator[usage_pb2.WatchUsageResponse]:
        """Calls as they are settled, then done."""
        if not _is_admin():
            raise PermissionDenied('watching usage needs the role "admin"')
        with self._settled.watch() as settled:
            async for record, missed in settled:
                yield usage_pb2.WatchUsageResponse(settled=_record(record), missed_count=missed)
        yield usage_pb2.WatchUsageResponse(done=usage_pb2.WatchUsageDone())


def spec(reader: LedgerReader, settled: Watching) -> ServiceSpec:
    """The service over the ledger; the servicer decides whose usage a caller may read."""
    return ServiceSpec(
        usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
        usage_pb2_grpc.add_UsageServiceServicer_to_server,
        UsageServicer(reader, settled),
        {
            **dict.fromkeys(("GetUsage", "ListUsage"), MethodSpec(ANY_ROLE, FREE)),
            "WatchUsage": MethodSpec(Role.ADMIN, FREE),
        },
    )


def _is_admin() -> bool:
    return Role.ADMIN in current().caller.roles


def _selection(wanted: usage_pb2.UsageFilter, request_id: str | None = None) -> Selection:
    """Raises PermissionDenied for what is not the caller's."""
    tenant = wanted.tenant if wanted.HasField("tenant") else None
    if not _is_admin():
        own = current().caller.tenant
        if tenant not in (None, own):
            raise PermissionDenied('the usage of another tenant needs the role "admin"')
        tenant = own
    since, until = _moment(wanted, "start_time"), _moment(wanted, "end_time")
    return Selection(
        tenant=tenant,
        since=since or (until or datetime.now(UTC)) - timedelta(days=_DEFAULT_DAYS),
        until=until,
        service=wanted.service if wanted.HasField("service") else None,
        model=wanted.model if wanted.HasField("model") else None,
        request_id=request_id,
    )


def _moment(wanted: usage_pb2.UsageFilter, field: str) -> datetime | None:
    if not wanted.HasField(field):  # type: ignore[arg-type]
        return None
    try:
        return getattr(wanted, field).ToDatetime(UTC)  # type: ignore[no-any-return]
    except ValueError:
        raise InvalidRequest([Violation(f"filter.{field}", "must be a time of the years 1 to 9999")]) from None


def _sum(found: Sum) -> usage_pb2.UsageSum:
    return usage_pb2.UsageSum(
        day=found.day.isoformat(),
        tenant=found.tenant,
        service=found.service,
        model=found.model,
        call_count=found.calls,
        estimated_count=found.estimated,
        prompt_tokens=found.prompt_tokens,
        cached_tokens=found.cached_tokens,
        completion_tokens=found.completion_tokens,
        cost_micros=found.cost_micros,
        currency=found.currency,
    )


def _record(found: Record) -> usage_pb2.UsageRecord:
    accounting = found.accounting
    record = usage_pb2.UsageRecord(
        id=found.id,
        tenant=found.tenant,
        key_id=found.key_id,
        request_id=found.request_id,
        service=found.service,
        method=found.method,
        model=common_pb2.ModelRef(name=found.model, version=found.model_version, digest=found.model_digest),
        provider=found.provider,
        usage=common_pb2.Usage(
            prompt_tokens=accounting.prompt_tokens,
            completion_tokens=accounting.completion_tokens,
            total_tokens=accounting.total_tokens,
            source=common_pb2.UsageSource.ValueType(accounting.source.value),
            cost_micros=accounting.cost_micros,
            currency=accounting.currency,
            cached_tokens=accounting.cached_tokens,
        ),
        price_version=found.price_version,
        start_time=_timestamp(found.started),
        outcome=usage_pb2.UsageOutcome.Value(f"USAGE_OUTCOME_{found.outcome.name}"),
        repeated_request=found.repeated,
    )
    if found.ended:
        record.end_time.CopyFrom(_timestamp(found.ended))
    return record


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
