"""What is read of the ledger, as SQL inside a transaction of whoever calls."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Integer, case, func, literal_column, select

from server.domain.money import Cost
from server.usage.ledger import Outcome, Record, Selection, Source, Sum
from server.usage.rows import accounting_of, micros, moment
from server.usage.tables import CALLS

_DAY_MICROS = 86_400_000_000


def _chosen(selection: Selection) -> list[ColumnElement[bool]]:
    columns = CALLS.c
    equal = {
        columns.tenant: selection.tenant,
        columns.service: selection.service,
        columns.model: selection.model,
        columns.request_id: selection.request_id,
    }
    conditions = [column == value for column, value in equal.items() if value is not None]
    if selection.since:
        conditions.append(columns.started >= micros(selection.since))
    if selection.until:
        conditions.append(columns.started < micros(selection.until))
    return conditions


def sums(connection: Connection, selection: Selection, limit: int) -> list[Sum]:
    """As `LedgerReader.sums`."""
    columns = CALLS.c
    day = (columns.started // literal_column(str(_DAY_MICROS), Integer)).label("day")
    keys = (day, columns.tenant, columns.service, columns.model, columns.currency)
    estimated = func.sum(case((columns.source == Source.ESTIMATED.value, 1), else_=0)).label("estimated")
    numbers = (columns.prompt_tokens, columns.cached_tokens, columns.completion_tokens, columns.cost_micros)
    query = (
        select(
            *keys, func.count().label("calls"), estimated, *(func.sum(column).label(column.name) for column in numbers)
        )
        .where(columns.outcome != Outcome.OPEN.value, *_chosen(selection))
        .group_by(*keys)
        .order_by(day.desc(), *keys[1:])
        .limit(limit)
    )
    return [
        Sum(
            day=moment(row.day * _DAY_MICROS).date(),
            tenant=row.tenant,
            service=row.service,
            model=row.model,
            calls=row.calls,
            estimated=int(row.estimated),
            prompt_tokens=int(row.prompt_tokens),
            cached_tokens=int(row.cached_tokens),
            completion_tokens=int(row.completion_tokens),
            cost_micros=int(row.cost_micros),
            currency=row.currency,
        )
        for row in connection.execute(query)
    ]


def records(connection: Connection, selection: Selection, before: str, limit: int) -> list[Record]:
    """As `LedgerReader.records`."""
    conditions = _chosen(selection)
    if before:
        conditions.append(CALLS.c.id < before)
    query = select(CALLS).where(*conditions).order_by(CALLS.c.id.desc()).limit(limit)
    return [_record(row) for row in connection.execute(query)]


def _record(row: Any) -> Record:
    return Record(
        id=row.id,
        tenant=row.tenant,
        key_id=row.key_id,
        request_id=row.request_id,
        service=row.service,
        method=row.method,
        model=row.model,
        model_version=row.model_version,
        model_digest=row.model_digest,
        provider=row.provider,
        accounting=accounting_of(row),
        price_version=row.price_version,
        started=moment(row.started),
        ended=None if row.ended is None else moment(row.ended),
        outcome=Outcome(row.outcome),
        repeated=bool(row.repeat_of),
    )


def spent(connection: Connection, tenant: str, service: str | None, since: datetime) -> Cost:
    """As `LedgerReader.spent`."""
    columns = CALLS.c
    of_tenant = [columns.tenant == tenant, columns.started >= micros(since), columns.repeat_of == ""]
    if service is not None:
        of_tenant.append(columns.service == service)

    def total(tokens: Column[int], money: Column[int], *conditions: ColumnElement[bool]) -> Cost:
        sums = select(func.coalesce(func.sum(tokens), 0), func.coalesce(func.sum(money), 0))
        return Cost(*map(int, connection.execute(sums.where(*of_tenant, *conditions)).one()))

    charged = total(columns.total_tokens, columns.cost_micros)  # of open ones both are 0
    reserved = total(columns.reserved_tokens, columns.reserved_micros, columns.outcome == Outcome.OPEN.value)
    return Cost(charged.tokens + reserved.tokens, charged.micros + reserved.micros)
