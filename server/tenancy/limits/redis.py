"""Limits of several servers: Redis decides by its own clock, in one script for all limits of a call.

While Redis does not answer, each server decides alone with its share of the limits. The cost of those calls is added to
the budgets in Redis when it is back.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from server.domain.errors import Excess, LedgerUnavailable, QuotaExceeded
from server.domain.money import Cost
from server.tenancy.limits.budgets import SECOND, Budget, BudgetBaseline, Dates, Spent
from server.tenancy.limits.limit_set import LimitSet, Permit, limit_sets, refusal
from server.tenancy.limits.memory import MemoryLimiter
from server.tenancy.limits.redis_batcher import ANSWER_SECONDS, Away, RedisBatcher, microseconds
from server.tenancy.limits.redis_message import Fill
from server.tenancy.tenants import Tenant

_ATTEMPTS = 4  # a period may end, accounts may be missing, an answer may be late
_VALID = int(2 * ANSWER_SECONDS * SECOND)
_SLACK = SECOND  # a call that is cancelled at its deadline takes a moment to end
_LONGEST_LEASE = 86_400 * SECOND

Accounts = Sequence[tuple[Budget, Dates]]


@dataclass(slots=True, eq=False)
class _Call:
    """A call on its way: `sent` is whether Redis may have counted it, `local` the permit of this server alone.

    `offset` is how far Redis's clock was ahead of microseconds() when it admitted the call.
    """

    limits: LimitSet
    id: str
    estimate: Cost
    began: int = field(default_factory=microseconds)
    offset: int | None = None
    sent: bool = False
    local: Permit | None = None
    accounts: Accounts = ()

    def keys(self) -> list[str]:
        """The keys of all counters of the call."""
        limits = self.limits
        return [
            f"{limits.prefix}:open",
            *(rate.key for rate in limits.rates),
            *(each.key for each in limits.concurrency),
            *(f"{budget.key}:{dates.first}" for budget, dates in self.accounts),
        ]


class RedisLimiter:
    """Limits of several servers. `replicas` are those that share the limits while Redis does not answer.

    `clock` is for tests: it replaces the clock of Redis, in microseconds.
    """

    def __init__(self, url: str, spent: Spent, *, replicas: int = 1, clock: Callable[[], int] | None = None) -> None:
        self._limits_of = limit_sets()
        self._baseline = BudgetBaseline(spent)
        self._local = MemoryLimiter(spent, replicas=replicas)
        self._batcher = RedisBatcher(url, self._local.forget_budgets)
        self._clock = clock
        self._sender = secrets.token_hex(8)
        self._numbers = count(1)

    async def start(self) -> None:
        """Connect. Without Redis it starts degraded."""
        await self._batcher.start()

    @property
    def degraded(self) -> bool:
        """Whether this server decides alone, because Redis does not answer."""
        return self._batcher.away

    async def enter(self, tenant: Tenant, service: str, estimate: Cost, *, seconds: float) -> Permit | None:
        """As MemoryLimiter.enter."""
        limits = self._limits_of(tenant, service)
        if limits is None:
            return None
        call = _Call(limits, f"{self._sender}{next(self._numbers)}", estimate)
        permit = Permit(partial(self._settle, call))
        if not self._batcher.away:
            try:
                call.sent = True
                await self._decide(call, seconds)
                return permit
            except Away:
                pass
            except asyncio.CancelledError:
                permit.settle(Cost())  # it may have been counted
                raise
        call.accounts = _current(limits, self._now())
        try:
            call.local = await self._local.enter(tenant, service, estimate, seconds=seconds)
        except (QuotaExceeded, LedgerUnavailable, asyncio.CancelledError):
            permit.settle(Cost())
            raise
        return permit

    async def _decide(self, call: _Call, seconds: float) -> None:
        """Return if Redis admits the call. Raises Away, a refusal, or LedgerUnavailable."""
        now = self._now()
        lease = min(max(int(seconds * SECOND), 0) + _SLACK, _LONGEST_LEASE)
        baselines: dict[str, Sequence[int]] = {}  # by position, as Lua counts
        for _ in range(_ATTEMPTS):
            call.accounts = _current(call.limits, now)
            word, now, *rest = await self._batcher.enter(call.keys(), self._question(call, lease, baselines))
            match word:
                case b"ok":
                    call.began = microseconds()
                    call.offset = now - call.began
                    return
                case b"refused":
                    raise refusal(_excesses(call, rest, now))
                case b"missing":
                    for position in rest:
                        budget, dates = call.accounts[position - 1]
                        begun = microseconds()
                        cost, read = await self._baseline.get(budget, dates.start)
                        age = max(begun - int(read * SECOND), 0)  # another call may have begun the read earlier
                        baselines[str(position)] = (cost.tokens, cost.micros, now - age)
                case b"period":
                    baselines.clear()
        raise Away

    def _question(self, call: _Call, lease: int, baselines: Mapping[str, Sequence[int]]) -> Fill:
        cost = call.estimate
        question: dict[str, Any] = {
            "id": call.id,
            "lease": lease,
            "rates": [(rate.spacing(rate.amount(cost)), rate.tolerance) for rate in call.limits.rates],
            "concurrency": [each.calls for each in call.limits.concurrency],
            "accounts": [
                (dates.start, dates.end, cost.tokens, _or_none(budget.tokens), cost.micros, _or_none(budget.micros))
                for budget, dates in call.accounts
            ],
            "baselines": baselines,
        }
        if self._clock:
            question["now"] = question["valid"] = self._clock()
            return lambda offset: question
        return lambda offset: {**question, "valid": microseconds() + offset + _VALID}

    def _settle(self, call: _Call, actual: Cost) -> None:
        """Redis gets it a moment later."""
        if call.local is not None:
            call.local.settle(actual)
        if not call.sent and not (call.accounts and actual != Cost()):
            return
        estimate, ended = call.estimate, microseconds()
        number = next(self._numbers)
        message: dict[str, Any] = {
            "number": number,
            "id": call.id,
            "estimate": (estimate.tokens, estimate.micros),
            "actual": (actual.tokens, actual.micros),
            "rates": [rate.change(estimate, actual) for rate in call.limits.rates],
            "concurrency": len(call.limits.concurrency),
        }
        if self._clock:
            message |= {"now": self._clock(), "began": self._clock(), "ended": self._clock() + 1}
        began, own = call.began, call.offset

        def fill(offset: int) -> Mapping[str, Any]:
            ahead = offset if own is None else own
            return {"began": began + ahead, "ended": ended + ahead, **message}

        self._batcher.settle([f"{call.limits.prefix}:settled:{self._sender}", *call.keys()], number, fill)

    def _now(self) -> int:
        """About the time of Redis."""
        return self._clock() if self._clock else microseconds() + self._batcher.offset

    async def close(self) -> None:
        """Write the settlements that are not yet written."""
        await self._batcher.close()
        await self._local.close()
        await self._baseline.close()


def _current(limits: LimitSet, now: int) -> Accounts:
    return [(budget, budget.period.around(now)) for budget in limits.budgets]


def _excesses(call: _Call, found: Sequence[int], now: int) -> list[Excess]:
    """From the answer "refused" of enter.lua: triples of a position and two numbers."""
    limits, excesses = call.limits, list[Excess]()
    for position, one, two in zip(found[::3], found[1::3], found[2::3], strict=True):
        index = position - 1
        if index < len(limits.rates):
            excesses.append(limits.rates[index].excess(call.estimate, one))
        elif (index := index - len(limits.rates)) < len(limits.concurrency):
            excesses.append(limits.concurrency[index].excess())
        else:
            budget, _ = call.accounts[index - len(limits.concurrency)]
            excesses += budget.excesses(call.estimate, one, two, Cost(), now)
    return excesses


def _or_none(limit: int | None) -> int:
    return -1 if limit is None else limit
