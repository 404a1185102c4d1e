"""Rows of the ledger as plain values: their ids, times and what was accounted."""

import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from server.usage.ledger import Accounting, Opening, Record, Settlement, Source

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(of: int) -> datetime:
    """The same the other way round."""
    return _EPOCH + timedelta(microseconds=of)


def new_id(started: datetime) -> str:
    """An id that sorts by the time: 16 hexadecimal digits of microseconds and 16 of chance."""
    return f"{micros(started):016x}{secrets.token_hex(8)}"


def accounting_of(row: Any) -> Accounting:
    """What a row of the table says."""
    return Accounting(
        row.prompt_tokens,
        row.cached_tokens,
        row.completion_tokens,
        Source(row.source),
        row.cost_micros,
        row.currency,
    )


def charged(accounting: Accounting, *, repeated: bool) -> Accounting:
    """What a call is charged for: the money of a repeated one is nothing."""
    return replace(accounting, cost_micros=0) if repeated else accounting


def record_of(row_id: str, opening: Opening, settlement: Settlement, *, repeated: bool) -> Record:
    """A row that has just been settled, as it would be read."""
    return Record(
        id=row_id,
        tenant=opening.tenant,
        key_id=opening.key_id,
        request_id=opening.request_id,
        service=opening.service,
        method=opening.method,
        model=settlement.model,
        model_version=settlement.model_version,
        model_digest=settlement.model_digest,
        provider=settlement.provider,
        accounting=charged(settlement.accounting, repeated=repeated),
        price_version=settlement.price_version,
        started=opening.started,
        ended=settlement.ended,
        outcome=settlement.outcome,
        repeated=repeated,
    )
