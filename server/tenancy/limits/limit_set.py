"""The limits for a tenant's calls of one service, with the keys of their counters. Instants are in microseconds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from server.domain.errors import BudgetExhausted, Excess, QuotaExceeded
from server.domain.money import Cost
from server.tenancy.limits.budgets import SECOND, Budget, Period, share
from server.tenancy.tenants import Limits, Tenant

Unit = Literal["requests", "tokens"]
_MINUTE = 60 * SECOND
_CONCURRENCY_RETRY_SECONDS = 1.0  # when a running call will end is not known
_SHARE_RETRY_SECONDS = 1.0  # the call is over this server's share; by then the whole limit may count again


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The generic cell rate algorithm (GCRA) with weights: a bucket whose state is one instant, the theoretical arrival
    time, when it will be full again. A call moves that instant on by its `spacing`; it may be at most `tolerance` ahead
    of now.

    All are integers, so that Lua's doubles give the same results. Spacings are rounded up; the tolerance has room for
    that rounding, at most a thousandth of one unit.
    """

    key: str
    unit: Unit
    subject: str
    per_minute: int
    burst: int
    whole_burst: int  # of all servers together; `burst` is this server's share
    tolerance: int = field(init=False)

    def __post_init__(self) -> None:
        tolerance = self.spacing(self.burst) + min(self.burst, self.spacing(1) // 1000)
        object.__setattr__(self, "tolerance", tolerance)

    def amount(self, cost: Cost) -> int:
        """How much of this limit a call of `cost` takes."""
        return 1 if self.unit == "requests" else cost.tokens

    def spacing(self, amount: int) -> int:
        """Microseconds in which `amount` flows back."""
        return -(amount * _MINUTE // -self.per_minute)

    def change(self, estimate: Cost, actual: Cost) -> int:
        """How the theoretical arrival moves when a call has ended."""
        return 0 if self.unit == "requests" else self.spacing(actual.tokens) - self.spacing(estimate.tokens)

    def excess(self, cost: Cost, early: int) -> Excess:
        """Why a call is refused that would be admitted `early` microseconds later."""
        text = f"{self.per_minute} {self.unit} a minute, {self.burst} at once"
        seconds = early / SECOND
        amount = self.amount(cost)
        if self.unit == "tokens":
            text += f"; the call may take {amount}"
        if amount > self.whole_burst:
            text, seconds = f"{text}: never admitted", inf
        elif amount > self.burst:
            seconds = _SHARE_RETRY_SECONDS
        return Excess(self.subject, text, f"{self.unit}_per_minute", seconds)


@dataclass(frozen=True, slots=True)
class ConcurrencyLimit:
    """Calls at once."""

    key: str
    subject: str
    calls: int

    def excess(self) -> Excess:
        """Why a call is refused."""
        return Excess(self.subject, f"{self.calls} calls at once", "concurrent_calls", _CONCURRENCY_RETRY_SECONDS)


@dataclass(frozen=True, slots=True)
class LimitSet:
    """All limits of a tenant's calls of one service. `prefix` begins all keys of the tenant; its braces keep them in
    one hash slot of a Redis cluster.
    """

    prefix: str
    rates: tuple[RateLimit, ...]
    concurrency: tuple[ConcurrencyLimit, ...]
    budgets: tuple[Budget, ...]


@dataclass(frozen=True, slots=True)
class Permit:
    """An admitted call. Settle it exactly once, with its actual cost; that never blocks or raises."""

    settle: Callable[[Cost], None]


def limit_sets(replicas: int = 1) -> Callable[[Tenant, str], LimitSet | None]:
    """What finds the limits for a tenant's calls of a service ("ChatService"); None if there are none.

    With `replicas`, the limits are one server's share. They are made once for each Tenant object, so a changed tenants
    file takes effect at once.
    """
    known: dict[tuple[str, str], tuple[Tenant, LimitSet | None]] = {}

    def find(tenant: Tenant, service: str) -> LimitSet | None:
        found = known.get((tenant.name, service))
        if found is None or found[0] is not tenant:
            found = known[tenant.name, service] = (tenant, _limit_set(tenant, service, replicas))
        return found[1]

    return find


def _limit_set(tenant: Tenant, service: str, replicas: int) -> LimitSet | None:
    prefix = f"quintet:{{{tenant.name}}}"
    scopes: list[tuple[str, str, str | None, Limits]] = [(f"{prefix}:*", f"tenant {tenant.name}", None, tenant.limits)]
    if (own := tenant.service_limits.get(service)) is not None:
        scopes.append((f"{prefix}:{service}", f"tenant {tenant.name}, {service}", service, own))
    limits = LimitSet(
        prefix,
        tuple(rate for key, subject, _, limits in scopes for rate in _rates(key, subject, limits, replicas)),
        tuple(
            ConcurrencyLimit(f"{key}:calls", subject, share(limits.concurrent_calls, replicas))
            for key, subject, _, limits in scopes
            if limits.concurrent_calls is not None
        ),
        tuple(
            Budget(f"{key}:{period}", subject, tenant.name, within, period, tokens, micros, replicas)
            for key, subject, within, limits in scopes
            for period, tokens, micros in (
                (Period.DAY, limits.tokens_per_day, limits.micros_per_day),
                (Period.MONTH, limits.tokens_per_month, limits.micros_per_month),
            )
            if tokens is not None or micros is not None
        ),
    )
    return limits if limits.rates or limits.concurrency or limits.budgets else None


def _rates(key: str, subject: str, limits: Limits, replicas: int) -> Iterator[RateLimit]:
    units: tuple[tuple[Unit, int | None, int | None], ...] = (
        ("requests", limits.requests_per_minute, limits.request_burst),
        ("tokens", limits.tokens_per_minute, limits.token_burst),
    )
    for unit, per_minute, burst in units:
        if per_minute is not None:
            whole = per_minute if burst is None else burst
            yield RateLimit(f"{key}:{unit}", unit, subject, share(per_minute, replicas), share(whole, replicas), whole)


def refusal(excesses: Sequence[Excess]) -> QuotaExceeded | BudgetExhausted:
    """The error for a call that is over these limits: BudgetExhausted if a budget is among them."""
    return (BudgetExhausted if any(each.is_budget for each in excesses) else QuotaExceeded)(excesses)
