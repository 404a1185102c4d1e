"""The ledger: one row for every call that can cost, written before it costs anything and settled when it has ended.

Money is in integers of millionths. Times are UTC.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Protocol


class Source(IntEnum):
    """Who counted the tokens. Values are those of quintet.v1.UsageSource."""

    PROVIDER = 1
    ESTIMATED = 2
    UNAVAILABLE = 3


class Outcome(StrEnum):
    """How a call ended."""

    OPEN = "open"  # it runs
    OK = "ok"
    CANCELLED = "cancelled"  # by the caller
    DEADLINE = "deadline"  # the caller's, or the server's for calls that bring none
    FAILED = "failed"  # the provider failed, or the server did
    LOST = "lost"  # the server ended before the call did; tokens are what was reserved for the prompt


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known before the provider is asked. `request_digest` tells whether an id that was seen before was sent
    with the same request.
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


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a call ended. Provider, model and prices are those that were asked in the end."""

    accounting: Accounting
    outcome: Outcome
    provider: str
    model_version: str
    price_version: str
    ended: datetime


@dataclass(frozen=True, slots=True)
class Opened:
    """A row that waits to be settled. `earlier` is the accounting of the same request, if it was charged within a day:
    this one is then not charged.
    """

    id: str
    earlier: Accounting | None


class Ledger(Protocol):
    """Writes rows. Reading them is `LedgerReader`'s."""

    async def open(self, opening: Opening) -> Opened:
        """Returns when the row is on the disk. Raises LedgerUnavailable, or RequestIdReused."""
        ...

    async def settle(self, opened: Opened, settlement: Settlement) -> None:
        """Returns when it is on the disk. Cancelling the wait does not cancel the writing, which is tried until the
        ledger is closed. Settling a second time changes nothing.
        """
        ...
