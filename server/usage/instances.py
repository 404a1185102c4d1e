"""Servers that write to one database: who lives, and what becomes of the open rows of who does not.

Ages are by the database's clock, so clocks of servers may differ.
"""

from typing import Any

from sqlalchemy import Connection, delete, insert, select, text, update

from server.usage.ledger import Outcome, Source
from server.usage.tables import CALLS, INSTANCES

_NOW = {
    "sqlite": text("SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"),
    "postgresql": text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"),
}


def now_ms(connection: Connection) -> int:
    """The database's time in milliseconds since 1970."""
    return int(connection.execute(_NOW[connection.dialect.name]).scalar_one())


def beat(connection: Connection, instance: str) -> None:
    """Say that a server lives."""
    now = now_ms(connection)
    changed = connection.execute(update(INSTANCES).where(INSTANCES.c.id == instance).values(beat=now))
    if not changed.rowcount:
        connection.execute(insert(INSTANCES).values(id=instance, beat=now))


def reap(connection: Connection, lost_seconds: float) -> int:
    """Mark open rows of servers that have not said for so long that they live; return how many."""
    now = now_ms(connection)
    oldest = now - int(lost_seconds * 1000)
    alive = select(INSTANCES.c.id).where(INSTANCES.c.beat >= oldest)
    found = _lose(connection, CALLS.c.instance.not_in(alive), now)
    connection.execute(delete(INSTANCES).where(INSTANCES.c.beat < oldest))
    return found


def leave(connection: Connection, instance: str) -> int:
    """Say that a server ends, and mark what it has not settled; return how many rows."""
    now = now_ms(connection)
    found = _lose(connection, CALLS.c.instance == instance, now)
    connection.execute(delete(INSTANCES).where(INSTANCES.c.id == instance))
    return found


def _lose(connection: Connection, whose: Any, now: int) -> int:
    columns = CALLS.c
    lost = {
        "prompt_tokens": columns.own_prompt_tokens,
        "total_tokens": columns.own_prompt_tokens,
        "cost_micros": columns.own_prompt_micros,
        "source": Source.ESTIMATED.value,
        "outcome": Outcome.LOST.value,
        "ended": now * 1000,
    }
    changed = connection.execute(update(CALLS).where(columns.outcome == Outcome.OPEN.value, whose).values(lost))
    return changed.rowcount
