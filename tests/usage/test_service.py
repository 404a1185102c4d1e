"""UsageService on a real ledger: which usage a caller may see."""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from quintet.v1 import usage_pb2

from server.domain.access import LOCAL, Caller
from server.domain.context import Context, set_current
from server.domain.errors import InvalidRequest, LedgerUnavailable, PermissionDenied
from server.tasks.usage import service as usage
from server.tasks.usage.service import UsageServicer
from server.usage.ledger import SqlLedger
from server.usage.reader import SqlReader
from tests.ledgers import entry, settled

ADMIN, ACME = Caller("ops", roles=frozenset({"admin"})), Caller("acme", roles=frozenset({"call"}))
NOW = datetime.now(UTC)
CONTEXT: Any = None  # servicers do not look at it


@pytest.fixture
async def servicer(tmp_path: Path) -> AsyncIterator[UsageServicer]:
    """Three calls of acme, one of them a year old, and one of zen."""
    target = tmp_path / "ledger.sqlite"
    async with aclosing(SqlLedger(target)) as ledger:
        for number, tenant, age in ((1, "acme", 0), (2, "acme", 1), (3, "acme", 365), (4, "zen", 0)):
            begun = entry(f"r-{number}", tenant=tenant, started=NOW - timedelta(days=age))
            await ledger.settle(settled(await ledger.open(begun), number))
        yield UsageServicer(SqlReader(target), ledger.watchers)


def enter(caller: Caller) -> None:
    set_current(Context("/quintet.v1.UsageService/GetUsage", "r", time.monotonic() + 60, caller=caller))


async def listed(servicer: UsageServicer, **chosen: Any) -> list[str]:
    request = usage_pb2.ListUsageRequest(filter=usage_pb2.UsageFilter(**chosen))
    return [record.request_id for record in (await servicer.ListUsage(request, CONTEXT)).records]


async def test_a_tenant_sees_its_own(servicer: UsageServicer) -> None:
    enter(ACME)
    assert await listed(servicer) == await listed(servicer, tenant="acme") == ["r-1", "r-2"]
    assert {each.tenant for each in (await servicer.GetUsage(usage_pb2.GetUsageRequest(), CONTEXT)).sums} == {"acme"}
    with pytest.raises(PermissionDenied, match="another tenant"):
        await listed(servicer, tenant="zen")
    request = usage_pb2.GetUsageRequest(filter=usage_pb2.UsageFilter(tenant="zen"))
    with pytest.raises(PermissionDenied):
        await servicer.GetUsage(request, CONTEXT)
    with pytest.raises(PermissionDenied, match="watching"):
        await anext(servicer.WatchUsage(usage_pb2.WatchUsageRequest(), CONTEXT))


@pytest.mark.parametrize("caller", [ADMIN, LOCAL])
async def test_an_administrator_sees_all(servicer: UsageServicer, caller: Caller) -> None:
    enter(caller)
    assert sorted(await listed(servicer)) == ["r-1", "r-2", "r-4"]
    assert await listed(servicer, tenant="zen") == ["r-4"]


async def test_times(servicer: UsageServicer) -> None:
    enter(ADMIN)
    assert await listed(servicer, start_time=NOW - timedelta(days=400), tenant="acme") == ["r-1", "r-2", "r-3"]
    assert await listed(servicer, end_time=NOW - timedelta(days=300)) == [], "30 days before the end"
    assert await listed(servicer, end_time=NOW - timedelta(days=360)) == ["r-3"]
    wrong = usage_pb2.ListUsageRequest()
    wrong.filter.start_time.seconds = 2**60
    with pytest.raises(InvalidRequest, match=r"filter\.start_time"):
        await servicer.ListUsage(wrong, CONTEXT)


async def test_pages(servicer: UsageServicer) -> None:
    enter(ADMIN)
    first = await servicer.ListUsage(usage_pb2.ListUsageRequest(page_size=2), CONTEXT)
    request = usage_pb2.ListUsageRequest(page_size=2, page_token=first.next_page_token)
    second = await servicer.ListUsage(request, CONTEXT)
    assert len(first.records) + len(second.records) == 3
    assert second.next_page_token == ""
    one = await servicer.ListUsage(usage_pb2.ListUsageRequest(request_id="r-4"), CONTEXT)
    assert [(each.tenant, each.usage.total_tokens, each.usage.cost_micros) for each in one.records] == [("zen", 7, 7)]


async def test_sums_that_are_too_many(servicer: UsageServicer, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(ADMIN)
    monkeypatch.setattr(usage, "_MAX_SUMS", 1)
    with pytest.raises(InvalidRequest, match="shorter time"):
        await servicer.GetUsage(usage_pb2.GetUsageRequest(), CONTEXT)


async def test_a_ledger_that_cannot_be_read(tmp_path: Path) -> None:
    enter(ADMIN)
    async with aclosing(SqlLedger(tmp_path / "ledger.sqlite")) as ledger:
        servicer = UsageServicer(SqlReader(tmp_path), ledger.watchers)
        with pytest.raises(LedgerUnavailable):
            await servicer.GetUsage(usage_pb2.GetUsageRequest(), CONTEXT)
