"""What is to be written to the ledger, and the answers."""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from server.domain.errors import LedgerUnavailable, RequestIdReused
from server.domain.usage import Entry, Opened

REFUSAL = "the ledger of usage cannot be written to, so no call that costs is started"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How often a server writes its heartbeat, and after how many seconds without one it counts as dead."""

    beat_seconds: float = 2.0
    lost_seconds: float = 10.0


@dataclass(slots=True, eq=False)
class Change:
    """A change that waits to be written: a new entry, a settled one, or one whose call was not begun.

    `future` takes the answer of a new entry, and for a settled one whether it was written. A new entry whose future is
    cancelled before that is not written. `is_spilled`: it is in the spill file, too.
    """

    kind: Literal["open", "settle", "void"]
    entry: Entry
    future: "asyncio.Future[Any] | None" = None
    is_spilled: bool = False


Answer = Opened | RequestIdReused | LedgerUnavailable | Literal[True]
