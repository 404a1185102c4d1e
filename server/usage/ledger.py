"""The ledger: one row for every call that can cost, written before it costs anything and settled when it has ended.

Money is in integers of millionths. Times are UTC. `sql.py` keeps it in a database.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum, StrEnum
from typing import NamedTuple, Protocol

from server.domain.money import Cost


class Source(IntEnum):
    """Who counted the tokens. Values are those of quintet.v1.UsageSource."""

    PROVIDER = 1
    ESTIMATED = 2
    UNAVAILABLE = 3


class Outcome(StrEnum):
    """How a call ended. Names are those of quintet.v1.UsageOutcome."""

    OPEN = "open"  # it runs
    OK = "ok"
    CANCELLED = "cancelled"  # by the caller
    DEADLINE = "deadline"  # the caller's, or the server's for calls that bring none
    FAILED = "failed"  # the provider failed, or the server did
    LOST = "lost"  # the server ended before the call did; tokens are our own count of the prompt


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known before the provider is asked. `request_digest` tells whether an id that was seen before was sent
    with the same request. `prompt_micros` is what the prompt alone costs, for a call that is lost.
    """

    tenant: str
    key_id: str
    request_id: str
    request_digest: str
    brought_id: bool
    service: str
    method: str
    model: str
    model_digest: str
    provider: str
    prompt_tokens: int  # by our own count
    prompt_micros: int
    reserved_tokens: int
    reserved_micros: int
    price_version: str
    currency: str
    started: datetime


@dataclass(frozen=True, slots=True)
class Accounting:
    """What a call consumed and cost."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    source: Source
    cost_micros: int
    currency: str

    @property
    def total_tokens(self) -> int:
        """Of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a call ended. Provider, model and prices are those that were asked in the end."""

    accounting: Accounting
    outcome: Outcome
    provider: str
    model: str
    model_version: str
    model_digest: str
    price_version: str
    ended: datetime


@dataclass(frozen=True, slots=True)
class Opened:
    """A row that waits to be settled. `earlier` is the accounting of the same request, if it was charged within a day
    and its caller did not give it up: this one is then not charged.
    """

    id: str
    earlier: Accounting | None


class Ledger(Protocol):
    """Writes rows. Reading them is `LedgerReader`'s. Used on the event loop alone."""

    async def open(self, opening: Opening) -> Opened:
        """Returns when the row is on the disk. Raises LedgerUnavailable, or RequestIdReused.

        A row whose opening is cancelled is closed again by the ledger, with no tokens.
        """
        ...

    def settle(self, opened: Opened, settlement: Settlement) -> asyncio.Future[bool]:
        """Queue what a call cost; it is tried until the ledger is closed. Settling a second time changes nothing.

        The future becomes true when it is on the disk, or false if it never came there. Nobody need wait for it, and
        cancelling it cancels no writing.
        """
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it is read. `ended` is None while the call runs; `repeated` calls were not charged."""

    id: str
    tenant: str
    key_id: str
    request_id: str
    service: str
    method: str
    model: str
    model_version: str
    model_digest: str
    provider: str
    accounting: Accounting
    price_version: str
    started: datetime
    ended: datetime | None
    outcome: Outcome
    repeated: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are meant: calls that began from `since` until before `until`. None means all."""

    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    service: str | None = None
    model: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Sum:
    """Calls of one day, tenant, service and model that have ended, added up."""

    day: date
    tenant: str
    service: str
    model: str
    calls: int
    estimated: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int
    currency: str


class LedgerReader(Protocol):
    """Reads rows, off the event loop. Everything raises LedgerUnavailable."""

    async def sums(self, selection: Selection, limit: int) -> list[Sum]:
        """Up to `limit` sums: newest day first, then by tenant, service and model."""
        ...

    async def records(self, selection: Selection, *, before: str, limit: int) -> list[Record]:
        """Up to `limit` rows, newest first, that are older than the row `before` ("": all)."""
        ...

    async def spent(self, tenant: str, service: str | None, since: datetime) -> Cost:
        """What a tenant's calls that began at `since` or later cost: settled ones what they were charged, open ones
        what they reserved.
        """
        ...


class Settled(NamedTuple):
    """A row that was settled, and how many were before it that a slow reader missed."""

    record: Record
    missed: int


class Watching(Protocol):
    """Tells what is settled."""

    def watch(self) -> AbstractContextManager[AsyncIterator[Settled]]:
        """Rows as this process settles them, until the ledger stops telling."""
        ...
