"""What is written to the ledger, as SQL inside the caller's transaction.

Instances are the servers that write to one database; they send heartbeats, and the open entries of one that fell silent
are lost. Ages are by the database's clock, so the servers' clocks may differ.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, or_, select, text, update

from server.domain.errors import RequestIdReused
from server.domain.usage import Entry, Opened, Outcome, UsageSource, microseconds, time_of_id
from server.usage.tables import CALLS, INSTANCES, SETTLED, entry_of, row_of, storable_entry

_REPEAT_WINDOW = timedelta(days=1)
MAX_REPEATS = 3  # of a charged call that are not charged
BROKEN_OFF = (Outcome.CANCELLED, Outcome.DEADLINE)  # by the caller
_columns = CALLS.c
_is_open = _columns.outcome == Outcome.OPEN.value
_NOW = {
    "sqlite": text("SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"),
    "postgresql": text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"),
}
_OWN = {
    "prompt_tokens": _columns.own_prompt_tokens,
    "total_tokens": _columns.own_prompt_tokens,
    "cost_micros": _columns.own_prompt_micros,
}
_BEAT = text(
    "INSERT INTO quintet_instances (id, beat) VALUES (:id, :beat) ON CONFLICT (id) DO UPDATE SET beat = excluded.beat"
)
# Built once: building a statement takes as long as running it.
_INSERT = insert(CALLS)
_SAME_REQUESTS = (
    select(CALLS)
    .where(
        _columns.request_id.in_(bindparam("ids", expanding=True)),  # for pairs with tenants SQLite would scan the table
        _columns.started >= bindparam("since"),
        _columns.brought_id,
    )
    .order_by(_columns.id)
)
# A lost entry may be settled: a server that was taken for dead and lives knows more than the estimate.
_SETTLE = update(CALLS).where(_columns.id == bindparam("entry"), or_(_is_open, _columns.outcome == Outcome.LOST.value))
_Key = tuple[str, str]  # tenant, request id


def open_rows(connection: Connection, instance: str, wanted: Sequence[Entry]) -> list[Opened | RequestIdReused]:
    """Write entries; for each, the entry as it was written or why it was not."""
    wanted = [storable_entry(entry) for entry in wanted]
    known = _same_requests(connection, [entry for entry in wanted if entry.brought_id])
    answers: list[Opened | RequestIdReused] = []
    for entry in wanted:
        before = known[entry.tenant, entry.request_id] if entry.brought_id else []
        try:
            charged = _charged_before(entry, before)
        except RequestIdReused as reused:
            answers.append(reused)
            continue
        if charged:
            opened = Opened(replace(entry, repeat_of=charged.id, own_prompt_micros=0), charged.usage)
        else:
            opened = Opened(entry, None)
        before.append(opened.entry)
        answers.append(opened)
    if rows := [row_of(each.entry, instance) for each in answers if isinstance(each, Opened)]:
        connection.execute(_INSERT, rows)
    return answers


def _charged_before(entry: Entry, before: Sequence[Entry]) -> Entry | None:
    """The entry of the same request that was charged and that its caller did not break off, if there is one: a caller
    that breaks off an answer and asks again pays again. Raises RequestIdReused.
    """
    used = "this request id was used within a day"
    if any(each.request_digest != entry.request_digest for each in before):
        raise RequestIdReused(f"{used} for another request; send a new one")
    if any(each.outcome is Outcome.OPEN for each in before):
        raise RequestIdReused(f"{used} for a call that still runs; wait for its end, or send a new one")
    paid = (each for each in before if not each.repeat_of and each.usage.total_tokens)
    first = next((each for each in paid if each.outcome not in BROKEN_OFF), None)
    if first and sum(each.repeat_of == first.id for each in before) >= MAX_REPEATS:
        raise RequestIdReused(f"{used} and repeated {MAX_REPEATS} times without being charged; send a new one")
    return first


def _same_requests(connection: Connection, brought: Sequence[Entry]) -> Mapping[_Key, list[Entry]]:
    """Entries of the last day by tenant and request id, oldest first."""
    known: defaultdict[_Key, list[Entry]] = defaultdict(list)
    if not brought:
        return known
    keys = sorted({(entry.tenant, entry.request_id) for entry in brought})
    if connection.dialect.name == "postgresql":  # in SQLite one transaction writes at a time
        # Two servers must not both find that a tenant's request id is new. The locks are numbers of 64 bits.
        digests = [hashlib.sha256("\n".join(key).encode()).digest() for key in keys]
        locks = sorted(int.from_bytes(digest[:8], "big", signed=True) for digest in digests)
        connection.execute(
            text("SELECT pg_advisory_xact_lock(k) FROM unnest(CAST(:keys AS bigint[])) k"), {"keys": locks}
        )
    since = microseconds(min(entry.started for entry in brought) - _REPEAT_WINDOW)
    ids = [*{request_id for _, request_id in keys}]
    for row in connection.execute(_SAME_REQUESTS, {"ids": ids, "since": since}):
        known[row.tenant, row.request_id].append(entry_of(row._asdict()))
    return known


def settle_rows(connection: Connection, instance: str, settled: Sequence[Entry]) -> None:
    """Write how calls ended. What was settled before stays. A row that is missing because the database was replaced is
    written whole.
    """
    rows = [row_of(entry, instance) for entry in settled]
    changes = [{"entry": row["id"], **{name: row[name] for name in SETTLED}} for row in rows]
    if connection.execute(_SETTLE, changes).rowcount == len(settled):
        return
    found = set(connection.scalars(select(_columns.id).where(_columns.id.in_([entry.id for entry in settled]))))
    if missing := [row for row in rows if row["id"] not in found]:
        connection.execute(_INSERT, missing)


def void_rows(connection: Connection, ids: Sequence[str]) -> None:
    """Close entries whose calls were not begun: nothing was consumed."""
    _end(connection, _columns.id.in_(ids), Outcome.CANCELLED, _now_ms(connection), {})


def beat(connection: Connection, instance: str) -> None:
    connection.execute(_BEAT, {"id": instance, "beat": _now_ms(connection)})


def reap(connection: Connection, lost_seconds: float) -> int:
    """Mark open entries of instances without a heartbeat for `lost_seconds` as lost; return how many."""
    now = _now_ms(connection)
    oldest = now - int(lost_seconds * 1000)
    alive = select(INSTANCES.c.id).where(INSTANCES.c.beat >= oldest)
    found = _end(connection, _columns.instance.not_in(alive), Outcome.LOST, now, _OWN)
    connection.execute(delete(INSTANCES).where(INSTANCES.c.beat < oldest))
    return found


def leave(connection: Connection, instance: str) -> int:
    """Remove an instance that ends, and mark what it has not settled as lost; return how many entries."""
    found = _end(connection, _columns.instance == instance, Outcome.LOST, _now_ms(connection), _OWN)
    connection.execute(delete(INSTANCES).where(INSTANCES.c.id == instance))
    return found


def expire(connection: Connection, before: datetime, most: int) -> int:
    """Delete up to `most` of the oldest entries that began before this time; return how many."""
    old = select(_columns.id).where(_columns.id < time_of_id(before)).order_by(_columns.id).limit(most)
    # Another server that deletes the same ones is not waited for.
    found = old.with_for_update(skip_locked=True)
    return connection.execute(delete(CALLS).where(_columns.id.in_(found))).rowcount


def _now_ms(connection: Connection) -> int:
    """The database's time in milliseconds since 1970."""
    return int(connection.execute(_NOW[connection.dialect.name]).scalar_one())


def _end(connection: Connection, condition: Any, outcome: Outcome, now_ms: int, used: Mapping[str, Any]) -> int:
    """End open entries; return how many."""
    ended = {**used, "source": UsageSource.ESTIMATED, "outcome": outcome, "ended": now_ms * 1000}
    return connection.execute(update(CALLS).where(_is_open, condition).values(ended)).rowcount
