"""Limits in one process: what is admitted over time, for all sequences of calls."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from math import inf
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.errors import BudgetExhausted, LedgerUnavailable, QuotaExceeded
from server.domain.money import Cost
from server.domain.usage import moment_of
from server.tenancy.limits.budgets import Period
from server.tenancy.limits.limit_set import Permit, RateLimit
from server.tenancy.limits.memory import MemoryLimiter
from server.tenancy.tenants import Limits, Tenant
from tests.tenants import nothing_spent

T = TypeVar("T")
SECOND = 1_000_000
MINUTE = 60 * SECOND
START = int(datetime(2026, 11, 29, 22, tzinfo=UTC).timestamp()) * SECOND
CHAT = "ChatService"


class Desk:
    """A limiter with a clock that the test sets."""

    def __init__(self, limits: Limits, spent: Any = None, replicas: int = 1, **services: Limits) -> None:
        self.now = START
        self.tenant = Tenant("acme", frozenset(), limits=limits, service_limits=services)
        clock: Callable[[], int] = lambda: self.now  # noqa: E731
        self.limiter = MemoryLimiter(spent or nothing_spent, replicas=replicas, ticks=clock, wall=clock)

    def enter(self, tokens: int = 0, micros: int = 0, service: str = CHAT) -> Permit:
        permit = at_once(self.limiter.enter(self.tenant, service, Cost(tokens, micros), seconds=10))
        assert permit is not None
        return permit

    def refused(self, tokens: int = 0, micros: int = 0, service: str = CHAT) -> QuotaExceeded:
        with pytest.raises(QuotaExceeded) as caught:
            self.enter(tokens, micros, service)
        return caught.value

    @property
    def counted(self) -> tuple[dict[str, int], dict[str, int], dict[str, tuple[int, int]]]:
        """Theoretical arrivals that are to come, calls that run, and what is spent."""
        found = self.limiter
        accounts = {key: (each.tokens, each.micros) for key, each in found._accounts.items()}
        return (
            {key: arrival for key, arrival in found._arrivals.items() if arrival > self.now},
            found._running.copy(),
            {key: spent for key, spent in accounts.items() if any(spent)},
        )


_RUNNER = asyncio.Runner()


def at_once(work: Coroutine[Any, Any, T]) -> T:
    return _RUNNER.run(work)


@given(
    st.integers(1, 10**6),
    st.integers(1, 10**5),
    st.lists(st.tuples(st.integers(0, 2 * MINUTE) | st.integers(0, 1000), st.integers(1, 1000)), max_size=60),
)
def test_no_window_admits_more_than_the_burst_and_what_flowed_back(
    per_minute: int, burst: int, arrivals: list[tuple[int, int]]
) -> None:
    rate = RateLimit("", "tokens", "", per_minute, burst, burst)
    now, arrival = START, 0
    admitted: list[tuple[int, int]] = []
    for gap, amount in arrivals:
        now += gap
        after = max(arrival, now) + rate.spacing(amount)
        if after - now <= rate.tolerance:
            admitted.append((now, amount))
            arrival = after
    for first in range(len(admitted)):
        total = 0
        for at, amount in admitted[first:]:
            total += amount
            window = at - admitted[first][0] + 1  # a microsecond more: spacings are whole ones
            # A thousandth of one unit is the room for rounding.
            assert total * MINUTE <= burst * MINUTE + per_minute * window + MINUTE // 1000


@given(st.integers(1, 1000), st.integers(1, 50))
def test_the_whole_burst_is_admitted_at_once_and_the_delay_is_exact(per_minute: int, burst: int) -> None:
    desk = Desk(Limits(requests_per_minute=per_minute, request_burst=burst))
    for _ in range(burst):
        desk.enter()
    error = desk.refused()
    assert [excess.subject for excess in error.excesses] == ["tenant acme"]
    wait = round(error.retry_after * SECOND)
    desk.now += wait - 1
    desk.refused()
    desk.now += 1
    desk.enter()


costs = st.builds(Cost, st.integers(0, 300), st.integers(0, 300))
limits = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(1, 20),
    request_burst=st.none() | st.integers(1, 5),
    tokens_per_minute=st.none() | st.integers(1, 1000),
    token_burst=st.none() | st.integers(1, 500),
    concurrent_calls=st.none() | st.integers(1, 3),
    tokens_per_day=st.none() | st.integers(0, 1000),
    tokens_per_month=st.none() | st.integers(0, 1000),
    micros_per_day=st.none() | st.integers(0, 1000),
    micros_per_month=st.none() | st.integers(0, 1000),
)


@given(limits, limits, st.lists(st.tuples(st.integers(0, 30 * SECOND), costs), max_size=15))
def test_a_refusal_counts_nothing(own: Limits, service: Limits, calls: list[tuple[int, Cost]]) -> None:
    desk = Desk(own, ChatService=service)
    for gap, cost in calls:
        desk.now += gap
        before = desk.counted
        try:
            at_once(desk.limiter.enter(desk.tenant, CHAT, cost, seconds=10))  # without limits it returns None
        except QuotaExceeded:
            assert desk.counted == before


@given(costs, costs)
def test_settling_is_as_if_the_actual_had_been_reserved(estimate: Cost, actual: Cost) -> None:
    plenty = Limits(100, None, 997, None, 3, 1000, 1000, 1000, 1000)
    settled, reserved = Desk(plenty), Desk(plenty)
    for each in (settled, reserved):
        each.enter(1, 1).settle(Cost(1, 1))
    settled.enter(estimate.tokens, estimate.micros).settle(actual)
    reserved.enter(actual.tokens, actual.micros).settle(actual)
    assert settled.counted == reserved.counted


def test_all_broken_limits_are_told_and_a_budget_decides_the_reason() -> None:
    desk = Desk(
        Limits(tokens_per_minute=100, concurrent_calls=1, tokens_per_day=150), ChatService=Limits(micros_per_month=5)
    )
    permit = desk.enter(80, 4)
    error = desk.refused(80, 4)
    assert isinstance(error, BudgetExhausted)
    assert error.metadata["limits"] == "tokens_per_minute,concurrent_calls,tokens_per_day,micros_per_month"
    assert [excess.subject for excess in error.excesses] == [*["tenant acme"] * 3, "tenant acme, ChatService"]
    assert error.retry_after == 26 * 3600  # until December
    assert desk.refused(10).metadata["limits"] == "concurrent_calls"
    assert desk.refused(service="RagService").metadata["limits"] == "concurrent_calls"
    permit.settle(Cost(150, 5))
    assert desk.enter() is not None  # what costs nothing is not refused for a budget
    error = desk.refused(1)
    assert error.metadata["limits"] == "tokens_per_minute,concurrent_calls,tokens_per_day"


def test_what_can_never_be_admitted_is_not_told_to_come_again() -> None:
    desk = Desk(Limits(tokens_per_minute=100, tokens_per_day=1000))
    error = desk.refused(101)
    assert error.retry_after == inf
    assert "never admitted" in error.message
    assert desk.refused(1001).retry_after == inf


def test_budgets_begin_anew_with_day_and_month_in_utc() -> None:
    desk = Desk(Limits(tokens_per_day=10, tokens_per_month=15))
    running = desk.enter(10)
    assert desk.refused(5).retry_after == 2 * 3600
    desk.now += 2 * 3600 * SECOND
    running.settle(Cost(8))  # belongs to yesterday, and to the month
    desk.enter(7)
    assert desk.refused(1).metadata["limits"] == "tokens_per_month"
    assert desk.refused(1).retry_after == 24 * 3600
    desk.now += 24 * 3600 * SECOND
    desk.enter(10)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)))
def test_periods_are_those_of_the_calendar(time: datetime) -> None:
    now = int(time.replace(tzinfo=UTC).timestamp()) * SECOND
    for period in Period:
        dates = period.around(now)
        assert dates.start <= now < dates.end
        parts = 3 if period is Period.DAY else 2
        first, last, after = moment_of(dates.start), moment_of(dates.end - 1), moment_of(dates.end)
        assert first.timetuple()[:parts] == last.timetuple()[:parts] != after.timetuple()[:parts]
        assert f"{first:%Y-%m-%d}" == dates.first


def test_budgets_go_on_where_the_ledger_stands() -> None:
    asked: list[tuple[str, str | None, datetime]] = []

    async def spent(tenant: str, service: str | None, start: datetime) -> Cost:
        asked.append((tenant, service, start))
        await asyncio.sleep(0)
        return Cost(90, 0)

    desk = Desk(Limits(tokens_per_day=100), spent)

    async def both() -> list[object]:
        enter = (desk.limiter.enter(desk.tenant, CHAT, Cost(6), seconds=1) for _ in range(2))
        return await asyncio.gather(*enter, return_exceptions=True)

    first, second = at_once(both())
    assert isinstance(first, Permit)
    assert isinstance(second, BudgetExhausted)
    assert asked == [("acme", None, datetime(2026, 11, 29, tzinfo=UTC))]  # once for both


def test_without_the_ledger_nothing_that_costs_is_admitted() -> None:
    async def spent(tenant: str, service: str | None, start: datetime) -> Cost:
        raise LedgerUnavailable("away")

    desk = Desk(Limits(tokens_per_day=100), spent)
    with pytest.raises(LedgerUnavailable):
        desk.enter(1)
    desk.enter()


async def test_one_call_waits_for_a_ledger_that_hangs_and_the_others_do_not() -> None:
    asked = 0

    async def spent(tenant: str, service: str | None, start: datetime) -> Cost:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        raise AssertionError

    desk = Desk(Limits(tokens_per_day=100), spent)
    calls = [asyncio.create_task(desk.limiter.enter(desk.tenant, CHAT, Cost(6), seconds=1)) for _ in range(3)]
    await asyncio.wait(calls)
    late = asyncio.create_task(desk.limiter.enter(desk.tenant, CHAT, Cost(6), seconds=1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert late.done()
    assert all(isinstance(call.exception(), LedgerUnavailable) for call in (*calls, late))
    assert asked == 1
    await desk.limiter.close()


def test_a_share_is_a_part_of_what_is_left() -> None:
    async def spent(tenant: str, service: str | None, start: datetime) -> Cost:
        return Cost(70, 0)

    desk = Desk(Limits(requests_per_minute=60, concurrent_calls=2, tokens_per_day=100), spent, replicas=3)
    desk.enter(10).settle(Cost(10))
    assert desk.refused(1).metadata["limits"] == "tokens_per_day"
    held = desk.enter()
    assert desk.refused().metadata["limits"] == "concurrent_calls"
    held.settle(Cost())
    for _ in range(18):
        desk.enter().settle(Cost())
    assert desk.refused().metadata["limits"] == "requests_per_minute"


def test_full_buckets_are_forgotten() -> None:
    desk = Desk(Limits(requests_per_minute=60))
    for number in range(5000):
        tenant = Tenant(f"t{number}", frozenset(), limits=desk.tenant.limits)
        at_once(desk.limiter.enter(tenant, CHAT, Cost(), seconds=1))
        desk.now += SECOND
    assert len(desk.limiter._arrivals) <= 1025


def test_new_limits_hold_at_once() -> None:
    desk = Desk(Limits(concurrent_calls=1))
    held = desk.enter()
    desk.refused()
    desk.tenant = Tenant("acme", frozenset(), limits=Limits(concurrent_calls=2))
    desk.enter()
    desk.refused()
    held.settle(Cost())
    desk.enter()
