"""quintet.v1.UsageService"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import common_pb2, usage_pb2, usage_pb2_grpc

from server.domain.context import current
from server.domain.errors import InvalidRequest, PermissionDenied, Violation
from server.domain.usage import Entry, Selection
from server.rpc.access import MANAGES_USAGE, SEES_USAGE
from server.rpc.convert import by_name
from server.rpc.service_spec import ANY_ROLE, FREE, MethodSpec, ServiceSpec
from server.tenancy.tenants import Role

if TYPE_CHECKING:  # rooms that a service does not import
    from server.usage.ledger import Watchers
    from server.usage.reader import SqlReader

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
        return usage_pb2.GetUsageResponse(
            sums=[by_name(usage_pb2.UsageSum, each, day=each.day.isoformat()) for each in sums]
        )

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
        UsageServicer(reader, watchers),
        {
            **dict.fromkeys(("GetUsage", "ListUsage"), MethodSpec(ANY_ROLE, FREE, (SEES_USAGE,))),
            "WatchUsage": MethodSpec(Role.ADMIN, FREE, (MANAGES_USAGE,)),
        },
    )


def _is_admin() -> bool:
    return Role.ADMIN in current().caller.roles


def _selection(wanted: usage_pb2.UsageFilter, request_id: str | None = None) -> Selection:
    """Raises PermissionDenied if it is another tenant's and the caller is no administrator."""
    given = {field.name: value for field, value in wanted.ListFields()}
    tenant = given.get("tenant")
    if not _is_admin():
        own = current().caller.tenant
        if tenant not in (None, own):
            raise PermissionDenied('the usage of another tenant needs the role "admin"')
        tenant = own
    since, until = (_moment(name, given.get(name)) for name in ("start_time", "end_time"))
    since = since or (until or datetime.now(UTC)) - timedelta(days=_DEFAULT_DAYS)
    return Selection(tenant, since, until, given.get("service"), given.get("model"), request_id)


def _moment(field: str, timestamp: Timestamp | None) -> datetime | None:
    try:
        return timestamp.ToDatetime(UTC) if timestamp is not None else None
    except ValueError:
        raise InvalidRequest([Violation(f"filter.{field}", "must be a time of the years 1 to 9999")]) from None


def _record(entry: Entry) -> usage_pb2.UsageRecord:
    return by_name(
        usage_pb2.UsageRecord,
        entry,
        model=common_pb2.ModelRef(name=entry.model, version=entry.model_version, digest=entry.model_digest),
        usage=by_name(common_pb2.Usage, entry.usage, total_tokens=entry.usage.total_tokens),
        start_time=entry.started,
        end_time=entry.ended,
        outcome=f"USAGE_OUTCOME_{entry.outcome.name}",
        repeated_request=bool(entry.repeat_of),
    )
