"""Limits across processes: Redis decides, by its own time, in one script for all limits of a call.

While Redis is away, each server decides alone with its share of the limits; what its calls cost is added to the
budgets when Redis is back.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from server.domain.errors import BudgetExhausted, LedgerUnavailable, QuotaExceeded
from server.domain.money import Cost
from server.tenancy.limits.budget_baseline import BudgetBaseline, Spent, nothing_spent
from server.tenancy.limits.limiter import Permit
from server.tenancy.limits.memory import MemoryLimiter
from server.tenancy.limits.periods import SECOND, Span, moment
from server.tenancy.limits.redis_batcher import ANSWER_SECONDS, Away, RedisBatcher, microseconds
from server.tenancy.limits.refusal import Broken, refusal
from server.tenancy.limits.rules import Budget, RuleBook, Rules
from server.tenancy.tenants import Tenant

_ATTEMPTS = 4  # a period may end, accounts may be missing, an answer may be late
_VALID = int(2 * ANSWER_SECONDS * SECOND)
_SLACK = SECOND  # a call that is cancelled at its deadline takes a moment to end
_LONGEST = 86_400 * SECOND  # a lease

Accounts = Sequence[tuple[Budget, Span]]


class RedisLimiter:
    """`url` is that of Redis; `replicas` are the servers that share limits while it is away.

    `clock` is for tests: it tells the time in microseconds instead of Redis.
    """

    def __init__(
        self, url: str, spent: Spent = nothing_spent, *, replicas: int = 1, clock: Callable[[], int] | None = None
    ) -> None:
        self._rules = RuleBook()
        self._seeds = BudgetBaseline(spent)
        self._alone = MemoryLimiter(spent, replicas=replicas)
        self._pipe = RedisBatcher(url, self._alone.forget_budgets)
        self._clock = clock
        self._sender = secrets.token_hex(8)
        self._numbers = count(1)

    async def start(self) -> None:
        """Connect. Without Redis it starts degraded."""
        await self._pipe.start()

    @property
    def degraded(self) -> bool:
        """See Limiter."""
        return self._pipe.away

    async def enter(self, tenant: Tenant, service: str, estimate: Cost, *, seconds: float) -> Permit | None:
        """See Limiter."""
        rules = self._rules.find(tenant, service)
        if rules is None:
            return None
        call = Reservation(self, rules, f"{self._sender}{next(self._numbers)}", estimate)
        if not self._pipe.away:
            try:
                call.asked = True
                await self._decide(call, seconds)
                return call
            except Away:
                pass
            except asyncio.CancelledError:
                call.settle(Cost())  # it may have been counted
                raise
        call.accounts = _current(rules, self._now())
        try:
            call.alone = await self._alone.enter(tenant, service, estimate, seconds=seconds)
        except (QuotaExceeded, BudgetExhausted, LedgerUnavailable, asyncio.CancelledError):
            call.settle(Cost())
            raise
        return call

    async def _decide(self, call: "Reservation", seconds: float) -> None:
        """Return if Redis admits the call. Raises Away, a refusal, or LedgerUnavailable."""
        now = self._now()
        lease = min(max(int(seconds * SECOND), 0) + _SLACK, _LONGEST)
        seeds: dict[str, Sequence[int]] = {}  # by position, as Lua counts
        for _ in range(_ATTEMPTS):
            call.accounts = _current(call.rules, now)
            word, now, *rest = await self._pipe.ask(call.keys(), self._question(call, lease, seeds))
            match word:
                case b"ok":
                    call.admitted(now)
                    return
                case b"refused":
                    raise refusal(_broken(call, rest, now))
                case b"seed":
                    for position in rest:
                        budget, span = call.accounts[position - 1]
                        seeds[str(position)] = await self._seed(budget, span, now)
                case b"period":
                    seeds.clear()
        raise Away

    async def _seed(self, budget: Budget, span: Span, now: int) -> Sequence[int]:
        found = microseconds()
        cost, asked = await self._seeds.get(budget.tenant, budget.service, moment(span.start))
        age = max(found - int(asked * SECOND), 0)  # others may have asked before
        return (cost.tokens, cost.micros, now - age)

    def _question(
        self, call: "Reservation", lease: int, seeds: Mapping[str, Sequence[int]]
    ) -> Callable[[int], Mapping[str, Any]]:
        cost = call.estimate
        question: dict[str, Any] = {
            "id": call.id,
            "lease": lease,
            "rates": [(rate.spacing(rate.amount(cost)), rate.tolerance) for rate in call.rules.rates],
            "calls": [calls.most for calls in call.rules.calls],
            "accounts": [
                (span.start, span.end, cost.tokens, _or_none(budget.tokens), cost.micros, _or_none(budget.micros))
                for budget, span in call.accounts
            ],
            "seeds": seeds,
        }
        if self._clock:
            question["now"] = question["valid"] = self._clock()
            return lambda offset: question
        return lambda offset: {**question, "valid": microseconds() + offset + _VALID}

    def settle(self, call: "Reservation", actual: Cost) -> None:
        """Tell Redis how a call has ended."""
        estimate, number, ended = call.estimate, next(self._numbers), microseconds()
        message: dict[str, Any] = {
            "number": number,
            "id": call.id,
            "estimate": (estimate.tokens, estimate.micros),
            "actual": (actual.tokens, actual.micros),
            "rates": [rate.change(estimate, actual) for rate in call.rules.rates],
            "calls": len(call.rules.calls),
        }
        if self._clock:
            message |= {"now": self._clock(), "began": self._clock(), "ended": self._clock() + 1}
        began, own = call.began, call.offset

        def fill(offset: int) -> Mapping[str, Any]:
            ahead = offset if own is None else own
            return {"began": began + ahead, "ended": ended + ahead, **message}

        self._pipe.tell([f"{call.rules.prefix}:settled:{self._sender}", *call.keys()], fill)

    def _now(self) -> int:
        """Redis's time, as well as it is known here."""
        return self._clock() if self._clock else microseconds() + self._pipe.offset

    async def close(self) -> None:
        """See Limiter."""
        await self._pipe.close()
        await self._alone.close()
        await self._seeds.close()


class Reservation:
    """See Permit. `asked` is whether Redis may have counted the call, `alone` what was decided without it.

    `offset` is what Redis's clock was ahead of microseconds() when it admitted the call.
    """

    __slots__ = ("_limiter", "accounts", "alone", "asked", "began", "estimate", "id", "offset", "rules")

    def __init__(self, limiter: RedisLimiter, rules: Rules, call: str, estimate: Cost) -> None:
        self._limiter = limiter
        self.rules = rules
        self.id = call
        self.estimate = estimate
        self.began = microseconds()
        self.offset: int | None = None
        self.asked = False
        self.alone: Permit | None = None
        self.accounts: Accounts = ()

    def admitted(self, now: int) -> None:
        """Redis has counted it at `now`, by its clock."""
        self.began = microseconds()
        self.offset = now - self.began

    def settle(self, actual: Cost) -> None:
        """See Permit."""
        if self.alone is not None:
            self.alone.settle(actual)
        if self.asked or (self.accounts and actual != Cost()):
            self._limiter.settle(self, actual)

    def keys(self) -> list[str]:
        """Keys of all that counts it."""
        rules = self.rules
        return [
            f"{rules.prefix}:open",
            *(rate.key for rate in rules.rates),
            *(calls.key for calls in rules.calls),
            *(budget.account_key(span) for budget, span in self.accounts),
        ]


def _current(rules: Rules, now: int) -> Accounts:
    return [(budget, budget.period.around(now)) for budget in rules.budgets]


def _broken(call: Reservation, found: Sequence[int], now: int) -> list[Broken]:
    """What enter.lua says is broken: triples of a position and two numbers."""
    rules, broken = call.rules, list[Broken]()
    for position, one, two in zip(found[::3], found[1::3], found[2::3], strict=True):
        index = position - 1
        if index < len(rules.rates):
            broken.append(rules.rates[index].broken(call.estimate, one))
        elif (index := index - len(rules.rates)) < len(rules.calls):
            broken.append(rules.calls[index].broken())
        else:
            budget, _ = call.accounts[index - len(rules.calls)]
            broken += budget.broken(call.estimate, Cost(one, two), Cost(), now)
    return broken


def _or_none(limit: int | None) -> int:
    return -1 if limit is None else limit
