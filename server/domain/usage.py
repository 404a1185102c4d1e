"""What calls consume: usage, entries of the ledger, and how they are read. `server/usage` keeps them in a database.

Money is in integers of millionths of a currency (ISO 4217). Times are UTC.
"""

import asyncio
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import NamedTuple, Protocol

from server.domain.models import ModelIdentity

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UsageSource(IntEnum):
    """Who counted the tokens. Values are those of quintet.v1.UsageSource."""

    PROVIDER = 1
    ESTIMATED = 2
    UNAVAILABLE = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and cost of one call. `cached_tokens` is the part of the prompt that the provider had already computed."""

    prompt_tokens: int
    completion_tokens: int
    source: UsageSource
    cost_micros: int = 0
    currency: str = "USD"
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Outcome(StrEnum):
    """How a call ended. Names are those of quintet.v1.UsageOutcome; values are in the database."""

    OPEN = "open"  # still running
    OK = "ok"
    CANCELLED = "cancelled"  # by the caller
    DEADLINE = "deadline"  # the caller's, or the server's default
    FAILED = "failed"  # the provider or the server failed
    LOST = "lost"  # the server ended before the call did; the usage is our own count of the prompt


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment_of(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def time_of_id(started: datetime) -> str:
    """How ids of calls that began at this time begin: 16 hexadecimal digits of microseconds."""
    return f"{max(microseconds(started), 0):016x}"


def new_id(started: datetime) -> str:
    """An id that sorts by time; 16 random digits follow it."""
    return f"{time_of_id(started)}{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A call in the ledger. Field names are those of the database's columns.

    It is opened before a provider is asked, with usage zero, and settled when the call has ended; provider, model and
    prices are then those that answered. A lost call is charged the `own_` numbers: our count of the prompt.
    """

    id: str
    tenant: str
    key_id: str
    request_id: str
    request_digest: str  # equal for equal requests
    brought_id: bool  # whether the caller chose the request id
    service: str
    method: str
    model: str
    model_digest: str
    provider: str
    own_prompt_tokens: int
    own_prompt_micros: int
    reserved_tokens: int  # what the call may consume at most
    reserved_micros: int
    price_version: str
    started: datetime
    usage: Usage
    model_version: str = ""
    ended: datetime | None = None
    outcome: Outcome = Outcome.OPEN
    repeat_of: str = ""  # id of the entry that was charged for the same request

    def settled(
        self, usage: Usage, outcome: Outcome, *, provider: str, model: ModelIdentity, price_version: str
    ) -> "Entry":
        """The entry once the call has ended. A repeated request costs nothing."""
        return replace(
            self,
            usage=replace(usage, cost_micros=0) if self.repeat_of else usage,
            outcome=outcome,
            provider=provider,
            model=model.name,
            model_version=model.version,
            model_digest=model.digest,
            price_version=price_version,
            ended=datetime.now(UTC),
        )


class Opened(NamedTuple):
    """An entry on disk. `earlier` is the usage of the same request if it was charged within a day and its caller
    did not break it off: this one is not charged then.
    """

    entry: Entry
    earlier: Usage | None


class Ledger(Protocol):
    """Writes entries. Used on the event loop only."""

    @property
    def away(self) -> bool:
        """Whether it cannot write for now. Settlements then wait, so nothing should wait for them."""
        ...

    async def open(self, entry: Entry) -> Opened:
        """Return when the entry is on disk. Raises LedgerUnavailable and RequestIdReused.

        If the wait is cancelled, the ledger closes the entry with no tokens.
        """
        ...

    def settle(self, entry: Entry) -> asyncio.Future[bool]:
        """Queue an opened entry that has ended. The first settlement of an entry counts.

        The future becomes True once the entry is on disk, or False if the ledger was closed before. Waiting for it is
        optional, and cancelling it cancels no writing.
        """
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries to read: calls that began from `since` until before `until`. None selects all."""

    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    service: str | None = None
    model: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Sum:
    """Ended calls of one day, tenant, service, model and currency, added up. Names are those of quintet.v1.UsageSum."""

    day: date
    tenant: str
    service: str
    model: str
    currency: str
    call_count: int
    estimated_count: int  # calls whose tokens the provider did not count
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_micros: int


class Settled(NamedTuple):
    """A settled entry, and how many entries before it a slow watcher missed."""

    entry: Entry
    missed: int
