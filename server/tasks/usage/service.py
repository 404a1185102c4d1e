"""quintet.v1.UsageService"""

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from quintet.v1 import common_pb2, usage_pb2, usage_pb2_grpc

from server.domain.context import current
from server.domain.errors import InvalidRequest, PermissionDenied, Violation
from server.domain.usage import Entry, Selection, Sum
from server.rpc.convert import usage
from server.rpc.service_spec import ANY_ROLE, FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role

if TYPE_CHECKING:
    from server.usage.reader import SqlReader
    from server.usage.watchers import Watchers

_DEFAULT_DAYS = 30
_PAGE = 100
_MAX_SUMS = 10_000  # about 1 MB


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    def __init__(self, reader: "SqlReader", watchers: "Watchers") -> None:
        self._reader = reader
        self._watchers = watchers

    async def GetUsage(self, request: usage_pb2.GetUsageRequest, context: Any) -> usage_pb2.GetUsageResponse:
        sums = await self._reader.sums(_selection(request.filter), _MAX_SUMS + 1)
        if len(sums) > _MAX_SUMS:
            raise InvalidRequest([Violation("filter", f"matches more than {_MAX_SUMS} sums; ask for a shorter time")])
        return usage_pb2.GetUsageResponse(sums=map(_sum, sums))

    async def ListUsage(self, request: usage_pb2.ListUsageRequest, context: Any) -> usage_pb2.ListUsageResponse:
        """A page; its token is the last id."""
        selection = _selection(request.filter, request.request_id if request.HasField("request_id") else None)
        size = request.page_size or _PAGE
        found = await self._reader.entries(selection, before=request.page_token, limit=size + 1)
        return usage_pb2.ListUsageResponse(
            records=map(_record, found[:size]), next_page_token=found[size - 1].id if len(found) > size else ""
        )

    async def WatchUsage(
        self, request: usage_pb2.WatchUsageRequest, context: Any
    ) -> AsyncIterator[usage_pb2.WatchUsageResponse]:
        """Calls as they are settled, then done."""
        if not _is_admin():
            raise PermissionDenied('watching usage needs the role "admin"')
        with self._watchers.watch() as settled:
            async for entry, missed in settled:
                yield usage_pb2.WatchUsageResponse(settled=_record(entry), missed_count=missed)
        yield usage_pb2.WatchUsageResponse(done=usage_pb2.WatchUsageDone())


def spec(reader: "SqlReader", watchers: "Watchers") -> ServiceSpec:
    """The service over the ledger; the servicer decides whose usage a caller may read."""
    return ServiceSpec(
        usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
        usage_pb2_grpc.add_UsageServiceServicer_to_server,
        UsageServicer(reader, watchers),
        {
            **dict.fromkeys(("GetUsage", "ListUsage"), MethodSpec(ANY_ROLE, FREE)),
            "WatchUsage": MethodSpec(Role.ADMIN, FREE),
        },
    )


def _is_admin() -> bool:
    return Role.ADMIN in current().caller.roles


def _selection(wanted: usage_pb2.UsageFilter, request_id: str | None = None) -> Selection:
    """Raises PermissionDenied if it is another tenant's and the caller is no administrator."""
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
    fields: dict[str, Any] = {**asdict(found), "day": found.day.isoformat()}
    return usage_pb2.UsageSum(**fields)


def _record(entry: Entry) -> usage_pb2.UsageRecord:
    times: dict[str, Any] = {"start_time": entry.started, "end_time": entry.ended}
    return usage_pb2.UsageRecord(
        id=entry.id,
        tenant=entry.tenant,
        key_id=entry.key_id,
        request_id=entry.request_id,
        service=entry.service,
        method=entry.method,
        model=common_pb2.ModelRef(name=entry.model, version=entry.model_version, digest=entry.model_digest),
        provider=entry.provider,
        usage=usage(entry.usage),
        price_version=entry.price_version,
        outcome=usage_pb2.UsageOutcome.Value(f"USAGE_OUTCOME_{entry.outcome.name}"),
        repeated_request=bool(entry.repeat_of),
        **times,
    )
