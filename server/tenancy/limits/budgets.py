"""Budgets of a day or a month of UTC, and what the ledger says was spent before counting began.

Instants are microseconds since 1970.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from math import inf
from typing import NamedTuple

from server.domain.errors import Excess, LedgerUnavailable
from server.domain.money import Cost
from server.domain.usage import microseconds, moment_of

SECOND = 1_000_000
_WAIT_SECONDS = 0.5
_FRESH_SECONDS = 10.0


class Dates(NamedTuple):
    """The instants of one period, from `start` up to, but without, `end`. `first` is its first day, "2026-11-01"."""

    start: int
    end: int
    first: str


class Period(StrEnum):
    """How long a budget lasts."""

    DAY = "day"
    MONTH = "month"

    def around(self, now: int) -> Dates:
        """The period that contains `now`."""
        return _dates(self, now // (86_400 * SECOND))


@lru_cache(maxsize=16)
def _dates(period: Period, day: int) -> Dates:
    start = moment_of(day * 86_400 * SECOND)
    end = start + timedelta(days=1)
    if period is Period.MONTH:
        start = start.replace(day=1)
        end = (start + timedelta(days=31)).replace(day=1)
    return Dates(microseconds(start), microseconds(end), start.date().isoformat())


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in a period: tokens, millionths of money, or both. None is no limit.

    `service` is None for all services together. Each of the `replicas` has its share of what was left at its baseline.
    """

    key: str
    subject: str
    tenant: str
    service: str | None
    period: Period
    tokens: int | None
    micros: int | None
    replicas: int

    def applies_to(self, cost: Cost) -> bool:
        """False for calls that cost nothing: they pass an exhausted budget."""
        return bool((cost.tokens and self.tokens is not None) or (cost.micros and self.micros is not None))

    def excesses(self, cost: Cost, tokens: int, micros: int, baseline: Cost, now: int) -> list[Excess]:
        """Why a call does not fit beside the `tokens` and `micros` that are spent or reserved; empty if it fits."""
        found = []
        if self.tokens is not None and cost.tokens and tokens + cost.tokens > self._share(self.tokens, baseline.tokens):
            found.append(self._excess("tokens", self.tokens, tokens, cost.tokens, now))
        if self.micros is not None and cost.micros and micros + cost.micros > self._share(self.micros, baseline.micros):
            found.append(self._excess("micros", self.micros, micros, cost.micros, now))
        return found

    def _share(self, limit: int, baseline: int) -> int:
        return limit if self.replicas == 1 else baseline + share(max(limit - baseline, 0), self.replicas)

    def _excess(self, unit: str, limit: int, used: int, asked: int, now: int) -> Excess:
        show = _money if unit == "micros" else "{} tokens".format
        text = f"{show(limit)} a {self.period} (UTC); {show(used)} are spent or reserved, and the call may take "
        text += show(asked)
        seconds = (self.period.around(now).end - now) / SECOND
        if asked > limit:
            text, seconds = f"{text}: never admitted", inf
        return Excess(self.subject, text, f"{unit}_per_{self.period}", seconds, is_budget=True)


def share(limit: int, replicas: int) -> int:
    """One server's part of a limit: at least one, unless the limit is zero."""
    return max(limit // replicas, 1) if limit else 0


def _money(micros: int) -> str:
    return f"{micros // 1_000_000}.{micros % 1_000_000:06} of money"


# What a tenant spent since the start of a period, for all services or for one ("ChatService"): the cost of calls that
# ended, and the reservations of running ones.
Spent = Callable[[str, str | None, datetime], Awaitable[Cost]]


class BudgetBaseline:
    """Reads from the ledger what was spent when counting begins, once for all calls that wait for it.

    A read that takes longer than 0.5 s goes on, and its result serves the next call within 10 s. Until it ends, no
    other call waits for it.
    """

    def __init__(self, spent: Spent) -> None:
        self._spent = spent
        self._reads: dict[tuple[str, str | None, int], tuple[float, asyncio.Future[Cost]]] = {}

    async def get(self, budget: Budget, start: int) -> tuple[Cost, float]:
        """What was spent, and when the read began as time.monotonic(). Raises LedgerUnavailable."""
        key = (budget.tenant, budget.service, start)
        read = self._reads.get(key)
        if read is None or (read[1].done() and read[0] + _FRESH_SECONDS < time.monotonic()):
            spent = asyncio.ensure_future(self._spent(budget.tenant, budget.service, moment_of(start)))
            read = self._reads[key] = (time.monotonic(), spent)
        await asyncio.wait({read[1]}, timeout=max(0.0, read[0] + _WAIT_SECONDS - time.monotonic()))
        if not read[1].done():
            raise LedgerUnavailable("reading from the ledger what was spent takes too long", retry_after=1.0)
        if self._reads.get(key) is read:
            del self._reads[key]
        return read[1].result(), read[0]

    async def close(self) -> None:
        """Cancel the reads that still run."""
        reads = [read for _, read in self._reads.values()]
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
