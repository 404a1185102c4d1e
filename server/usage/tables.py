"""The tables of the ledger, in the SQL that SQLite and PostgreSQL share. Times are microseconds since 1970."""

from sqlalchemy import BigInteger, Boolean, Column, Connection, Index, Integer, MetaData, String, Table, insert, select

from server.usage.ledger import Outcome

VERSION = 1
METADATA = MetaData()

SCHEMA = Table("quintet_schema", METADATA, Column("version", Integer, primary_key=True, autoincrement=False))
# Servers that write. `beat` is when they last said that they live, by the database's own clock, in milliseconds.
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
    _text("repeat_of"),  # id of the row that was charged for the same request; else empty
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
