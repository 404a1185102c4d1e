"""What is read of the ledger, as SQL inside the caller's transaction. The functions are those of `SqlReader`."""

from datetime import datetime

from sqlalchemy import Column, ColumnElement, Connection, Integer, case, func, literal_column, select

from server.domain.money import Cost
from server.domain.usage import Entry, Outcome, Selection, Sum, UsageSource, microseconds, moment_of, time_of_id
from server.usage.tables import CALLS, entry_of, storable

_DAY_MICROS = 86_400_000_000
_columns = CALLS.c


def _matches(selection: Selection) -> list[ColumnElement[bool]]:
    wanted = {name: getattr(selection, name) for name in ("tenant", "service", "model", "request_id")}
    conditions = [_columns[name] == storable(value) for name, value in wanted.items() if value is not None]
    # Ids begin with the time, and have an index.
    if selection.since:
        conditions.append(_columns.id >= time_of_id(selection.since))
    if selection.until:
        conditions.append(_columns.id < time_of_id(selection.until))
    return conditions


def sums(connection: Connection, selection: Selection, limit: int) -> list[Sum]:
    day = (_columns.started // literal_column(str(_DAY_MICROS), Integer)).label("day")
    keys = (day, _columns.tenant, _columns.service, _columns.model, _columns.currency)
    estimated = case((_columns.source == UsageSource.ESTIMATED.value, 1), else_=0)
    numbers = (_columns.prompt_tokens, _columns.cached_tokens, _columns.completion_tokens, _columns.cost_micros)
    query = (
        select(*keys, func.count(), func.sum(estimated), *map(func.sum, numbers))
        .where(_columns.outcome != Outcome.OPEN.value, *_matches(selection))
        .group_by(*keys)
        .order_by(day.desc(), *keys[1:])
        .limit(limit)
    )
    return [
        Sum(moment_of(days * _DAY_MICROS).date(), *names, *map(int, totals))  # PostgreSQL adds up to decimals
        for days, *names, totals in ((row[0], *row[1:5], row[5:]) for row in connection.execute(query))
    ]


def entries(connection: Connection, selection: Selection, before: str, limit: int) -> list[Entry]:
    conditions = _matches(selection)
    if before:
        conditions.append(_columns.id < storable(before))
    query = select(CALLS).where(*conditions).order_by(_columns.id.desc()).limit(limit)
    return [entry_of(row._asdict()) for row in connection.execute(query)]


def spent(connection: Connection, tenant: str, service: str | None, since: datetime) -> Cost:
    of_tenant = [_columns.tenant == tenant, _columns.started >= microseconds(since), _columns.repeat_of == ""]
    if service is not None:
        of_tenant.append(_columns.service == service)

    def total(tokens: Column[int], money: Column[int], *conditions: ColumnElement[bool]) -> Cost:
        sums = select(func.coalesce(func.sum(tokens), 0), func.coalesce(func.sum(money), 0))
        return Cost(*map(int, connection.execute(sums.where(*of_tenant, *conditions)).one()))

    charged = total(_columns.total_tokens, _columns.cost_micros)  # both are 0 in open entries
    reserved = total(_columns.reserved_tokens, _columns.reserved_micros, _columns.outcome == Outcome.OPEN.value)
    return Cost(charged.tokens + reserved.tokens, charged.micros + reserved.micros)
