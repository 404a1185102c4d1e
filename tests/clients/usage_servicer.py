"""Usage of the small server: always the same few calls."""

from collections.abc import Iterator

from google.protobuf.timestamp_pb2 import Timestamp
from quintet.v1 import common_pb2, usage_pb2, usage_pb2_grpc

from tests.clients.servicers import MODEL, Context

SUMS = [
    usage_pb2.UsageSum(
        day="2026-11-29",
        tenant="acme",
        service="ChatService",
        model="rules",
        call_count=1204,
        estimated_count=3,
        prompt_tokens=1_234_567,
        cached_tokens=1000,
        completion_tokens=89_012,
        cost_micros=12_345_600,
        currency="USD",
    ),
    usage_pb2.UsageSum(
        day="2026-11-28",
        tenant="zen",
        service="RagService",
        model="rules",
        call_count=1,
        cost_micros=35,
        currency="USD",
    ),
]


def record(number: int) -> usage_pb2.UsageRecord:
    return usage_pb2.UsageRecord(
        id=f"{number}",
        tenant="acme",
        request_id=f"r-{number}",
        service="ChatService",
        method="Chat",
        model=MODEL,
        usage=common_pb2.Usage(
            prompt_tokens=1000 + number,
            completion_tokens=number,
            total_tokens=1000 + 2 * number,
            source=common_pb2.USAGE_SOURCE_ESTIMATED if number == 2 else common_pb2.USAGE_SOURCE_PROVIDER,
            cost_micros=number * 1_500_000,
            currency="USD",
        ),
        start_time=Timestamp(seconds=1_780_000_000 + number),
        end_time=Timestamp(seconds=1_780_000_001 + number),
        outcome=usage_pb2.USAGE_OUTCOME_CANCELLED if number == 2 else usage_pb2.USAGE_OUTCOME_OK,
        repeated_request=number == 3,
    )


class Usage(usage_pb2_grpc.UsageServiceServicer):
    """Three calls, two of them on the first page."""

    def GetUsage(self, request: usage_pb2.GetUsageRequest, context: Context) -> usage_pb2.GetUsageResponse:
        tenant = request.filter.tenant
        return usage_pb2.GetUsageResponse(sums=[each for each in SUMS if tenant in ("", each.tenant)])

    def ListUsage(self, request: usage_pb2.ListUsageRequest, context: Context) -> usage_pb2.ListUsageResponse:
        if request.page_token:
            return usage_pb2.ListUsageResponse(records=[record(1)])
        return usage_pb2.ListUsageResponse(records=[record(3), record(2)], next_page_token="more")

    def WatchUsage(
        self, request: usage_pb2.WatchUsageRequest, context: Context
    ) -> Iterator[usage_pb2.WatchUsageResponse]:
        yield usage_pb2.WatchUsageResponse(settled=record(1))
        yield usage_pb2.WatchUsageResponse(settled=record(2), missed_count=7)
        yield usage_pb2.WatchUsageResponse(done=usage_pb2.WatchUsageDone())
