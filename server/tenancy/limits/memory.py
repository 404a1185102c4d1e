"""Limits of one process, as numbers on the event loop. A decision takes microseconds; only the first one about a budget
in each period waits, for the ledger.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from server.domain.errors import Excess
from server.domain.money import Cost
from server.tenancy.limits.budgets import Budget, BudgetBaseline, Dates, Spent
from server.tenancy.limits.limit_set import LimitSet, Permit, limit_sets, refusal
from server.tenancy.tenants import Tenant

_SWEEP_AT = 1024  # number of rates at which full buckets are forgotten


@dataclass(slots=True, eq=False)
class Account:
    """What is spent or reserved of a budget in one period. `baseline` is what the ledger said when counting began."""

    dates: Dates
    baseline: Cost
    tokens: int
    micros: int


class MemoryLimiter:
    """With `replicas`, the limits are this server's share. `degraded` as for RedisLimiter.

    `ticks` measures rates and must not jump, `wall` gives days and months; both in microseconds.
    """

    degraded = False

    def __init__(
        self,
        spent: Spent,
        *,
        replicas: int = 1,
        ticks: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
        wall: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._limits_of = limit_sets(replicas)
        self._baseline = BudgetBaseline(spent)
        self._ticks = ticks
        self._wall = wall
        self._arrivals: dict[str, int] = {}  # theoretical ones, of rates
        self._running: dict[str, int] = {}
        self._accounts: dict[str, Account] = {}  # of the current periods; running calls hold theirs
        self._sweep_at = _SWEEP_AT

    async def enter(self, tenant: Tenant, service: str, estimate: Cost, *, seconds: float) -> Permit | None:
        """Admit a call that ends within `seconds`, or raise QuotaExceeded, BudgetExhausted or LedgerUnavailable.

        None if the tenant has no limits for this service ("ChatService"). Takes at most a fraction of a second.
        """
        limits = self._limits_of(tenant, service)
        if limits is None:
            return None
        accounts = await self._open_accounts(limits.budgets, estimate) if limits.budgets else []
        # No await from here on, so that all limits are decided at one instant.
        now = self._ticks()
        if excesses := self._excesses(limits, accounts, estimate, now):
            raise refusal(excesses)
        for rate in limits.rates:
            if amount := rate.amount(estimate):
                self._arrivals[rate.key] = max(self._arrivals.get(rate.key, 0), now) + rate.spacing(amount)
        for each in limits.concurrency:
            self._running[each.key] = self._running.get(each.key, 0) + 1
        for account in accounts:
            if account:
                account.tokens += estimate.tokens
                account.micros += estimate.micros
        if len(self._arrivals) >= self._sweep_at:
            self._arrivals = {key: arrival for key, arrival in self._arrivals.items() if arrival > now}
            self._sweep_at = max(2 * len(self._arrivals), _SWEEP_AT)
        return Permit(partial(self._leave, limits, accounts, estimate, self._wall()))

    async def _open_accounts(self, budgets: Sequence[Budget], cost: Cost) -> list[Account | None]:
        """The accounts of the current periods. None for those that no call has needed yet, and this one does not."""
        while True:
            now = self._wall()
            accounts = [self._account(budget, now) for budget in budgets]
            if None not in accounts:
                return accounts
            pairs = zip(budgets, accounts, strict=True)
            missing = [budget for budget, account in pairs if account is None and budget.applies_to(cost)]
            if not missing:
                return accounts
            for budget in missing:
                dates = budget.period.around(self._wall())
                baseline, _ = await self._baseline.get(budget, dates.start)
                if self._account(budget, self._wall()) is None:  # else another call has opened it in the meantime
                    self._accounts[budget.key] = Account(dates, baseline, baseline.tokens, baseline.micros)

    def _account(self, budget: Budget, now: int) -> Account | None:
        account = self._accounts.get(budget.key)
        return account if account and account.dates.start <= now < account.dates.end else None

    def _excesses(self, limits: LimitSet, accounts: Sequence[Account | None], cost: Cost, now: int) -> list[Excess]:
        found: list[Excess] = []
        for rate in limits.rates:
            if amount := rate.amount(cost):
                arrival = max(self._arrivals.get(rate.key, 0), now)
                if (early := arrival + rate.spacing(amount) - now - rate.tolerance) > 0:
                    found.append(rate.excess(cost, early))
        found += [each.excess() for each in limits.concurrency if self._running.get(each.key, 0) >= each.calls]
        for budget, account in zip(limits.budgets, accounts, strict=True):
            if account:
                found += budget.excesses(cost, account.tokens, account.micros, account.baseline, self._wall())
        return found

    def _leave(
        self, limits: LimitSet, accounts: Sequence[Account | None], estimate: Cost, entered: int, actual: Cost
    ) -> None:
        """Settle a call that entered at this time of day."""
        now = self._ticks()
        for rate in limits.rates:
            if change := rate.change(estimate, actual):
                self._arrivals[rate.key] = max(self._arrivals.get(rate.key, 0), now) + change
        for each in limits.concurrency:
            if left := self._running[each.key] - 1:
                self._running[each.key] = left
            else:
                del self._running[each.key]
        for budget, account in zip(limits.budgets, accounts, strict=True):
            # An account that was opened after the call began did not count it.
            if found := account or self._account(budget, entered):
                found.tokens += actual.tokens - estimate.tokens
                found.micros += actual.micros - estimate.micros

    def forget_budgets(self) -> None:
        """Read the baselines again: other servers have counted in the meantime."""
        self._accounts.clear()

    async def close(self) -> None:
        await self._baseline.close()
