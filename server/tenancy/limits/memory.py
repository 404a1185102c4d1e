"""Limits within one process: plain numbers on the event loop. A decision takes microseconds and waits for nothing,
but for the ledger when a budget is first asked about in a period.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from server.domain.money import Cost
from server.tenancy.limits.budget_baseline import BudgetBaseline, Spent, nothing_spent
from server.tenancy.limits.periods import Span, moment
from server.tenancy.limits.refusal import Broken, refusal
from server.tenancy.limits.rules import Budget, Calls, RuleBook, Rules
from server.tenancy.tenants import Tenant

_SWEEP_AT = 1024  # rates, at which those whose buckets are full again are forgotten


class Account:
    """What is spent or reserved of a budget in one period, and of that, what there was when counting began."""

    __slots__ = ("micros", "seed", "span", "tokens")

    def __init__(self, seed: Cost, span: Span) -> None:
        self.seed = seed
        self.span = span
        self.tokens = seed.tokens
        self.micros = seed.micros


class MemoryLimiter:
    """One process's limits; with `replicas`, its share of those of several.

    `ticks` measures rates and must not jump, `wall` tells days and months; both in microseconds.
    """

    degraded = False

    def __init__(
        self,
        spent: Spent = nothing_spent,
        *,
        replicas: int = 1,
        ticks: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
        wall: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._rules = RuleBook(replicas)
        self._seeds = BudgetBaseline(spent)
        self._ticks = ticks
        self._wall = wall
        self._arrivals: dict[str, int] = {}  # theoretical ones, of rates
        self._running: dict[str, int] = {}
        self._accounts: dict[str, Account] = {}  # of the current periods; calls that run hold theirs
        self._sweep_at = _SWEEP_AT

    async def enter(self, tenant: Tenant, service: str, estimate: Cost, *, seconds: float) -> "MemoryPermit | None":
        """See Limiter. `seconds` does not matter: whoever was admitted settles."""
        rules = self._rules.find(tenant, service)
        if rules is None:
            return None
        accounts = self._current(rules.budgets)
        while None in accounts and (missing := _missing(rules.budgets, accounts, estimate)):
            for budget in missing:
                await self._seed(budget)
            accounts = self._current(rules.budgets)
        # Nothing is awaited from here on.
        now = self._ticks()
        if broken := self._broken(rules, accounts, estimate, now):
            raise refusal(broken)
        for rate in rules.rates:
            if amount := rate.amount(estimate):
                self._arrivals[rate.key] = max(self._arrivals.get(rate.key, 0), now) + rate.spacing(amount)
        for calls in rules.calls:
            self._running[calls.key] = self._running.get(calls.key, 0) + 1
        counted = [account for account in accounts if account]
        _add(counted, estimate.tokens, estimate.micros)
        if len(self._arrivals) >= self._sweep_at:
            self._sweep(now)
        return MemoryPermit(self, rules, counted, estimate)

    def _current(self, budgets: Sequence[Budget]) -> list[Account | None]:
        """The accounts of the current periods; None for those that were not begun."""
        if not budgets:
            return []
        now = self._wall()
        found = (self._accounts.get(budget.key) for budget in budgets)
        return [account if account and account.span.start <= now < account.span.end else None for account in found]

    async def _seed(self, budget: Budget) -> None:
        span = budget.period.around(self._wall())
        seed, _ = await self._seeds.get(budget.tenant, budget.service, moment(span.start))
        if self._current([budget]) == [None]:
            self._accounts[budget.key] = Account(seed, span)

    def _broken(self, rules: Rules, accounts: Sequence[Account | None], cost: Cost, now: int) -> list[Broken]:
        broken: list[Broken] = []
        for rate in rules.rates:
            if amount := rate.amount(cost):
                arrival = max(self._arrivals.get(rate.key, 0), now)
                if (over := arrival + rate.spacing(amount) - now - rate.tolerance) > 0:
                    broken.append(rate.broken(cost, over))
        broken += [calls.broken() for calls in rules.calls if self._running.get(calls.key, 0) >= calls.most]
        for budget, account in zip(rules.budgets, accounts, strict=True):
            if account and not budget.fits(cost, account.tokens, account.micros, account.seed):
                used = Cost(account.tokens, account.micros)
                broken += budget.broken(cost, used, account.seed, self._wall())
        return broken

    def leave(self, rules: Rules, accounts: Sequence[Account], estimate: Cost, actual: Cost) -> None:
        """The call of a permit has ended."""
        now = self._ticks()
        for rate in rules.rates:
            if change := rate.change(estimate, actual):
                self._arrivals[rate.key] = max(self._arrivals.get(rate.key, 0), now) + change
        self._release(rules.calls)
        _add(accounts, actual.tokens - estimate.tokens, actual.micros - estimate.micros)

    def _release(self, limits: Sequence[Calls]) -> None:
        for calls in limits:
            if left := self._running[calls.key] - 1:
                self._running[calls.key] = left
            else:
                del self._running[calls.key]

    def forget_budgets(self) -> None:
        """Ask the ledger anew: others have counted in the meantime."""
        self._accounts.clear()

    def _sweep(self, now: int) -> None:
        self._arrivals = {key: arrival for key, arrival in self._arrivals.items() if arrival > now}
        self._sweep_at = max(2 * len(self._arrivals), _SWEEP_AT)

    async def close(self) -> None:
        """See Limiter."""
        await self._seeds.close()


class MemoryPermit:
    """See Permit."""

    __slots__ = ("_accounts", "_estimate", "_limiter", "_rules")

    def __init__(self, limiter: MemoryLimiter, rules: Rules, accounts: Sequence[Account], estimate: Cost) -> None:
        self._limiter = limiter
        self._rules = rules
        self._accounts = accounts
        self._estimate = estimate

    def settle(self, actual: Cost) -> None:
        """See Permit."""
        self._limiter.leave(self._rules, self._accounts, self._estimate, actual)


def _missing(budgets: Sequence[Budget], accounts: Sequence[Account | None], cost: Cost) -> list[Budget]:
    """Those that decide about a call of this cost and have no account."""
    return [budget for budget, account in zip(budgets, accounts, strict=True) if account is None and budget.needs(cost)]


def _add(accounts: Iterable[Account], tokens: int, micros: int) -> None:
    for account in accounts:
        account.tokens += tokens
        account.micros += micros
