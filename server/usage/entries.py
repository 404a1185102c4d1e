"""What is written to the ledger, as SQL inside a transaction of whoever calls."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, or_, select, text, update

from server.domain.errors import RequestIdReused
from server.usage.instances import now_ms
from server.usage.ledger import Accounting, Opening, Outcome, Settlement, Source
from server.usage.rows import accounting_of, charged, micros
from server.usage.tables import CALLS

_REPEAT_WINDOW = timedelta(days=1)
MAX_REPEATS = 3  # of a charged call that are not charged
GIVEN_UP = (Outcome.CANCELLED, Outcome.DEADLINE)  # by the caller
# An owner that was taken for dead and lives knows better than the estimate.
_may_settle = or_(CALLS.c.outcome == Outcome.OPEN.value, CALLS.c.outcome == Outcome.LOST.value)
# Built once: building a statement takes as long as running it.
_INSERT = insert(CALLS)
_KNOWN = (
    select(CALLS)
    .where(
        CALLS.c.request_id.in_(bindparam("ids", expanding=True)),  # of pairs with tenants, SQLite would read it all
        CALLS.c.started >= bindparam("since"),
        CALLS.c.brought_id,
    )
    .order_by(CALLS.c.id)
)
_SETTLE = update(CALLS).where(CALLS.c.id == bindparam("row"), _may_settle)


@dataclass(frozen=True, slots=True)
class OpenRow:
    """A row that is there, with what is known of it. `repeat_of` is empty for a call that is charged."""

    id: str
    opening: Opening
    repeat_of: str
    earlier: Accounting | None


class Known(NamedTuple):
    """A row of the same tenant and request id."""

    id: str
    digest: str
    outcome: str
    repeat_of: str
    accounting: Accounting


_NOTHING = Accounting(0, 0, 0, Source.UNAVAILABLE, 0, "")
Key = tuple[str, str]  # tenant, request id


def open_rows(
    connection: Connection, instance: str, wanted: Sequence[tuple[str, Opening]]
) -> list[OpenRow | RequestIdReused]:
    """Write rows with these ids; for each the row, or why there is none."""
    known = _known(connection, [opening for _, opening in wanted if opening.brought_id])
    answers: list[OpenRow | RequestIdReused] = []
    for row_id, opening in wanted:
        before = known[opening.tenant, opening.request_id] if opening.brought_id else []
        try:
            first = charged_before(opening, before)
        except RequestIdReused as reused:
            answers.append(reused)
            continue
        row = OpenRow(row_id, opening, first.id if first else "", first.accounting if first else None)
        before.append(Known(row_id, opening.request_digest, Outcome.OPEN, row.repeat_of, _NOTHING))
        answers.append(row)
    if rows := [_values(instance, row) for row in answers if isinstance(row, OpenRow)]:
        connection.execute(_INSERT, rows)
    return answers


def charged_before(opening: Opening, before: Sequence[Known]) -> Known | None:
    """The call of the same request that was charged and that its caller did not give up, if there is one.

    Whoever breaks off what he has read and asks again pays again. Raises RequestIdReused.
    """
    used = "this request id was used within a day"
    if any(row.digest != opening.request_digest for row in before):
        raise RequestIdReused(f"{used} for another request; send a new one")
    if any(row.outcome == Outcome.OPEN for row in before):
        raise RequestIdReused(f"{used} for a call that still runs; wait for its end, or send a new one")
    paid = (row for row in before if not row.repeat_of and row.accounting.total_tokens)
    first = next((row for row in paid if row.outcome not in GIVEN_UP), None)
    if first and sum(row.repeat_of == first.id for row in before) >= MAX_REPEATS:
        raise RequestIdReused(f"{used} and repeated {MAX_REPEATS} times without being charged; send a new one")
    return first


def _known(connection: Connection, brought: Sequence[Opening]) -> Mapping[Key, list[Known]]:
    """Rows of the last day by tenant and request id, oldest first."""
    known: defaultdict[Key, list[Known]] = defaultdict(list)
    if not brought:
        return known
    keys = sorted({(opening.tenant, opening.request_id) for opening in brought})
    if connection.dialect.name == "postgresql":  # elsewhere one transaction writes at a time
        locks = sorted(_lock(key) for key in keys)
        connection.execute(
            text("SELECT pg_advisory_xact_lock(k) FROM unnest(CAST(:keys AS bigint[])) k"), {"keys": locks}
        )
    since = micros(min(opening.started for opening in brought) - _REPEAT_WINDOW)
    ids = [*{request_id for _, request_id in keys}]
    for row in connection.execute(_KNOWN, {"ids": ids, "since": since}):
        known[row.tenant, row.request_id].append(
            Known(row.id, row.request_digest, row.outcome, row.repeat_of, accounting_of(row))
        )
    return known


def _lock(key: Key) -> int:
    """A number for a tenant's request id; two servers must not both find that it is new."""
    return int.from_bytes(hashlib.sha256("\n".join(key).encode()).digest()[:8], "big", signed=True)


def _values(instance: str, row: OpenRow) -> dict[str, Any]:
    opening = row.opening
    return {
        "id": row.id,
        "instance": instance,
        "tenant": opening.tenant,
        "key_id": opening.key_id,
        "request_id": opening.request_id,
        "request_digest": opening.request_digest,
        "brought_id": opening.brought_id,
        "service": opening.service,
        "method": opening.method,
        "model": opening.model,
        "model_version": "",
        "model_digest": opening.model_digest,
        "provider": opening.provider,
        "own_prompt_tokens": opening.prompt_tokens,
        "own_prompt_micros": 0 if row.repeat_of else opening.prompt_micros,
        "reserved_tokens": opening.reserved_tokens,
        "reserved_micros": opening.reserved_micros,
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "completion_tokens": 0,
        "total_tokens": 0,
        "source": Source.UNAVAILABLE.value,
        "price_version": opening.price_version,
        "cost_micros": 0,
        "currency": opening.currency,
        "started": micros(opening.started),
        "ended": None,
        "outcome": Outcome.OPEN.value,
        "repeat_of": row.repeat_of,
    }


def settle_rows(connection: Connection, instance: str, settled: Sequence[tuple[OpenRow, Settlement]]) -> None:
    """Write how calls ended. What was settled before stays; a row that is missing, for the database was replaced, is
    written whole.
    """
    changes = [{"row": row.id, **_end(row, settlement)} for row, settlement in settled]
    if connection.execute(_SETTLE, changes).rowcount == len(settled):
        return
    ids = [row.id for row, _ in settled]
    there = set(connection.scalars(select(CALLS.c.id).where(CALLS.c.id.in_(ids))))
    if missing := [
        {**_values(instance, row), **_end(row, settlement)} for row, settlement in settled if row.id not in there
    ]:
        connection.execute(_INSERT, missing)


def _end(row: OpenRow, settlement: Settlement) -> dict[str, Any]:
    accounting = charged(settlement.accounting, repeated=bool(row.repeat_of))
    return {
        "provider": settlement.provider,
        "model": settlement.model,
        "model_version": settlement.model_version,
        "model_digest": settlement.model_digest,
        "prompt_tokens": accounting.prompt_tokens,
        "cached_tokens": accounting.cached_tokens,
        "completion_tokens": accounting.completion_tokens,
        "total_tokens": accounting.total_tokens,
        "source": accounting.source.value,
        "price_version": settlement.price_version,
        "cost_micros": accounting.cost_micros,
        "currency": accounting.currency,
        "ended": micros(settlement.ended),
        "outcome": settlement.outcome.value,
    }


def void_rows(connection: Connection, ids: Sequence[str]) -> None:
    """Close rows whose calls were not begun: nothing was consumed."""
    now = now_ms(connection)
    ended = {"outcome": Outcome.CANCELLED.value, "source": Source.ESTIMATED.value, "ended": now * 1000}
    connection.execute(update(CALLS).where(CALLS.c.id.in_(ids), CALLS.c.outcome == Outcome.OPEN.value).values(ended))
