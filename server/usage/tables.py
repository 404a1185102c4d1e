"""The ledger's tables in the SQL that SQLite and PostgreSQL share, and their rows. Times: microseconds since 1970."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Connection, Index, Integer, MetaData, String, Table, insert, select

from server.domain.usage import Entry, Outcome, Usage, UsageSource, microseconds, moment_of

VERSION = 1
METADATA = MetaData()

SCHEMA = Table("quintet_schema", METADATA, Column("version", Integer, primary_key=True, autoincrement=False))
# Servers that write. `beat` is the time of their last heartbeat, by the database's clock, in milliseconds.
INSTANCES = Table(
    "quintet_instances", METADATA, Column("id", String, primary_key=True), Column("beat", BigInteger, nullable=False)
)


def _text(name: str) -> Column[str]:
    return Column(name, String, nullable=False)


def _number(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


CALLS = Table(
    "quintet_calls",
    METADATA,
    Column("id", String, primary_key=True),  # begins with `started`, so that ids sort by age
    *map(_text, ("instance", "tenant", "key_id", "request_id", "request_digest")),
    Column("brought_id", Boolean, nullable=False),
    *map(_text, ("service", "method", "model", "model_version", "model_digest", "provider")),
    *map(_number, ("own_prompt_tokens", "own_prompt_micros", "reserved_tokens", "reserved_micros")),
    *map(_number, ("prompt_tokens", "cached_tokens", "completion_tokens", "total_tokens")),
    Column("source", Integer, nullable=False),
    _text("price_version"),
    _number("cost_micros"),
    _text("currency"),
    _number("started"),
    Column("ended", BigInteger),
    _text("outcome"),
    _text("repeat_of"),
)
_columns = CALLS.c
# Budgets add up what was charged: this index alone answers.
Index(
    "quintet_calls_charged",
    *(_columns.tenant, _columns.started, _columns.service, _columns.total_tokens, _columns.cost_micros),
    sqlite_where=_columns.repeat_of == "",
    postgresql_where=_columns.repeat_of == "",
)
Index("quintet_calls_request", _columns.request_id, _columns.started)
Index("quintet_calls_page", _columns.tenant, _columns.id)
_is_open = _columns.outcome == Outcome.OPEN.value
Index("quintet_calls_open", _columns.instance, sqlite_where=_is_open, postgresql_where=_is_open)

_ENTRY = tuple(field.name for field in fields(Entry) if field.name != "usage")
_USAGE = tuple(field.name for field in fields(Usage))
_TEXTS = tuple(field.name for field in fields(Entry) if field.type is str)
_texts_of = attrgetter(*_TEXTS)
_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")
# The columns that settling changes.
SETTLED = (
    *("model", "model_version", "model_digest", "provider", "price_version", "ended", "outcome", "total_tokens"),
    *_USAGE,
)


def storable(text: str) -> str:
    """The text with U+FFFD for what a database does not take: NUL, and surrogates without their other half."""
    return text if text.isascii() and "\0" not in text else _NOT_STORABLE.sub("\ufffd", text)


def storable_entry(entry: Entry) -> Entry:
    """The entry with all its texts storable."""
    texts = _texts_of(entry)
    together = "".join(texts)
    if together.isascii() and "\0" not in together:
        return entry
    changed: dict[str, Any] = dict(zip(_TEXTS, map(storable, texts), strict=True))
    return replace(entry, **changed)


def row_of(entry: Entry, instance: str) -> dict[str, Any]:
    """The columns of an entry."""
    entry = storable_entry(entry)
    row = {name: getattr(entry, name) for name in _ENTRY} | {name: getattr(entry.usage, name) for name in _USAGE}
    row |= {"instance": instance, "total_tokens": entry.usage.total_tokens, "started": microseconds(entry.started)}
    row["ended"] = entry.ended and microseconds(entry.ended)
    return row


def entry_of(row: Mapping[str, Any]) -> Entry:
    """The entry of a row of CALLS."""
    ended = row["ended"] and moment_of(row["ended"])
    usage = Usage(**{**{name: row[name] for name in _USAGE}, "source": UsageSource(row["source"])})
    columns = {name: row[name] for name in _ENTRY}
    columns |= {"outcome": Outcome(row["outcome"]), "started": moment_of(row["started"]), "ended": ended}
    return Entry(usage=usage, **columns)


class OtherSchema(Exception):
    """Another version of the server made the tables."""


def create(connection: Connection) -> None:
    """Make the tables that are missing. Raises OtherSchema."""
    if connection.dialect.name == "postgresql":  # "if not exists" does not keep two servers apart
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7161736544)")
    METADATA.create_all(connection)
    version = connection.scalar(select(SCHEMA.c.version))
    if version is None:
        connection.execute(insert(SCHEMA).values(version=VERSION))
    elif version != VERSION:
        raise OtherSchema(f"the ledger's tables have version {version}; this server knows {VERSION}")
