"""What a tenant's limits ask of a call, as rules with the keys of their counters. Instants are in microseconds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from server.domain.money import Cost
from server.tenancy.limits.periods import SECOND, Period, Span
from server.tenancy.limits.refusal import Broken
from server.tenancy.tenants import Limits, Tenant

Unit = Literal["requests", "tokens"]
_MINUTE = 60 * SECOND
_CALLS_RETRY_SECONDS = 1.0  # nobody knows when one of the calls that run will end
_SHARE_RETRY_SECONDS = 1.0  # too much for a share; the whole limit may be back by then


@dataclass(frozen=True, slots=True)
class Rate:
    """The generic cell rate algorithm with weights. Its state is one instant, the theoretical arrival: when the bucket
    will be full again. An amount moves it on by its `spacing`, and it may be ahead of now by `tolerance`.

    All are integers, so that Lua's doubles agree. Spacings are rounded up; the tolerance has room for that rounding
    where it is less than a thousandth of one unit.
    """

    key: str
    unit: Unit
    subject: str
    per_minute: int
    burst: int
    whole_burst: int  # of all servers together; `burst` is this one's share of it
    tolerance: int = field(init=False)

    def __post_init__(self) -> None:
        tolerance = self.spacing(self.burst) + min(self.burst, self.spacing(1) // 1000)
        object.__setattr__(self, "tolerance", tolerance)

    @property
    def limit(self) -> str:
        """Its name in `Limits`."""
        return f"{self.unit}_per_minute"

    def amount(self, cost: Cost) -> int:
        """How much of this limit a call of `cost` takes."""
        return 1 if self.unit == "requests" else cost.tokens

    def spacing(self, amount: int) -> int:
        """Microseconds in which `amount` flows back."""
        return -(amount * _MINUTE // -self.per_minute)

    def change(self, estimate: Cost, actual: Cost) -> int:
        """How the theoretical arrival moves when a call has ended."""
        return 0 if self.unit == "requests" else self.spacing(actual.tokens) - self.spacing(estimate.tokens)

    def broken(self, cost: Cost, over: int) -> Broken:
        """The refusal of a call that would be admitted `over` microseconds later."""
        text = f"{self.per_minute} {self.unit} a minute, {self.burst} at once"
        seconds = over / SECOND
        amount = self.amount(cost)
        if self.unit == "tokens":
            text += f"; the call may take {amount}"
        if amount > self.whole_burst:
            text, seconds = f"{text}: never admitted", inf
        elif amount > self.burst:
            seconds = _SHARE_RETRY_SECONDS
        return Broken(self.limit, self.subject, text, seconds)


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls at once."""

    key: str
    subject: str
    most: int

    def broken(self) -> Broken:
        """The refusal."""
        return Broken("concurrent_calls", self.subject, f"{self.most} calls at once", _CALLS_RETRY_SECONDS)


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in a period, in tokens, in millionths of money, or both. None is no limit.

    `service` is None for all services together. `replicas` share what was left when they began to count apart.
    """

    key: str
    subject: str
    tenant: str
    service: str | None
    period: Period
    tokens: int | None
    micros: int | None
    replicas: int

    def account_key(self, span: Span) -> str:
        """Key of the counter of one period."""
        return f"{self.key}:{span.date}"

    def needs(self, cost: Cost) -> bool:
        """Whether a call of this cost is decided by it. A call that costs nothing passes an exhausted budget."""
        return bool((cost.tokens and self.tokens is not None) or (cost.micros and self.micros is not None))

    def fits(self, cost: Cost, tokens: int, micros: int, seed: Cost) -> bool:
        """Whether what was used leaves room for a call. Of it, `seed` was there when counting began."""
        return (
            self.tokens is None or not cost.tokens or tokens + cost.tokens <= self._share(self.tokens, seed.tokens)
        ) and (self.micros is None or not cost.micros or micros + cost.micros <= self._share(self.micros, seed.micros))

    def _share(self, limit: int, seed: int) -> int:
        return limit if self.replicas == 1 else seed + _part(max(limit - seed, 0), self.replicas)

    def broken(self, cost: Cost, used: Cost, seed: Cost, now: int) -> Iterator[Broken]:
        """The refusals of a call that does not fit."""
        for name, limit, asked, spent, before, show in (
            ("tokens", self.tokens, cost.tokens, used.tokens, seed.tokens, "{} tokens".format),
            ("micros", self.micros, cost.micros, used.micros, seed.micros, _money),
        ):
            if limit is None or not asked or spent + asked <= self._share(limit, before):
                continue
            text = f"{show(limit)} a {self.period} (UTC); {show(spent)} are spent or reserved, and the call may take "
            text += show(asked)
            seconds = (self.period.around(now).end - now) / SECOND
            if asked > limit:
                text, seconds = f"{text}: never admitted", inf
            yield Broken(f"{name}_per_{self.period}", self.subject, text, seconds, is_budget=True)


@dataclass(frozen=True, slots=True)
class Rules:
    """All that holds for a tenant's calls of one service. `prefix` begins all keys of the tenant: its braces put them
    into one slot of a cluster.
    """

    tenant: Tenant
    service: str
    prefix: str
    rates: tuple[Rate, ...]
    calls: tuple[Calls, ...]
    budgets: tuple[Budget, ...]


class RuleBook:
    """Rules by tenant and service, made when they are first asked for, and anew when the tenant's limits change.

    With `replicas`, they are one server's share of the limits.
    """

    def __init__(self, replicas: int = 1) -> None:
        self._replicas = replicas
        self._known: dict[tuple[str, str], tuple[Tenant, Rules | None]] = {}

    def find(self, tenant: Tenant, service: str) -> Rules | None:
        """None if nothing limits the tenant's calls of this service."""
        known = self._known.get((tenant.name, service))
        if known is None or known[0] is not tenant:
            known = self._known[tenant.name, service] = (tenant, _rules(tenant, service, self._replicas))
        return known[1]


def _rules(tenant: Tenant, service: str, replicas: int) -> Rules | None:
    prefix = f"quintet:{{{tenant.name}}}"
    scopes: list[tuple[str, str, str | None, Limits]] = [(f"{prefix}:*", f"tenant {tenant.name}", None, tenant.limits)]
    if (own := tenant.service_limits.get(service)) is not None:
        scopes.append((f"{prefix}:{service}", f"tenant {tenant.name}, {service}", service, own))
    rules = Rules(
        tenant,
        service,
        prefix,
        tuple(rate for key, subject, _, limits in scopes for rate in _rates(key, subject, limits, replicas)),
        tuple(
            Calls(f"{key}:calls", subject, _part(limits.concurrent_calls, replicas))
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
    return rules if rules.rates or rules.calls or rules.budgets else None


def _rates(key: str, subject: str, limits: Limits, replicas: int) -> Iterator[Rate]:
    units: tuple[tuple[Unit, int | None, int | None], ...] = (
        ("requests", limits.requests_per_minute, limits.request_burst),
        ("tokens", limits.tokens_per_minute, limits.token_burst),
    )
    for unit, per_minute, burst in units:
        if per_minute is not None:
            # A rate of nothing has no interval; it is one whose burst admits nothing.
            whole = (per_minute if burst is None else burst) if per_minute else 0
            own, most = _part(max(per_minute, 1), replicas), _part(whole, replicas)
            yield Rate(f"{key}:{unit}", unit, subject, own, most, whole)


def _part(limit: int, replicas: int) -> int:
    """One server's share: at least one, if there is anything."""
    return max(limit // replicas, 1) if limit else 0


def _money(micros: int) -> str:
    return f"{micros // 1_000_000}.{micros % 1_000_000:06} of money"
