"""Connections to the ledger's database: a SQLite file, or PostgreSQL by its URL."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from server.domain.network import connection_cause
from server.usage.tables import OtherSchema, create

# Errors of a database that is away, full or busy. Others are faults of this server.
AWAY: tuple[type[Exception], ...] = (OperationalError, InterfaceError, PoolTimeout, OSError, OtherSchema)
READING: tuple[type[Exception], ...] = (*AWAY, SQLAlchemyError)

# What libpq says if it cannot connect, and what an operator should read.
_CONNECTING = (
    ("password authentication failed", "wrong user or password"),
    ("no password supplied", "a password is needed"),
    ('database ".*" does not exist', "there is no such database"),
    ('role ".*" does not exist', "there is no such user"),
    ("no pg_hba.conf entry", "the database does not allow connections of this user from this address (pg_hba.conf)"),
    ("does not support SSL", "the database does not support TLS"),
    ("certificate verify failed|root certificate", "the database's certificate is not trusted"),
    ("Connection refused", "connection refused"),
    ("failed to resolve host|could not translate host name", "unknown host"),
    (
        "invalid connection option|invalid sslmode",
        "QUINTET_LEDGER_URL has a parameter that PostgreSQL does not know",
    ),
    ("timeout|timed out", "no answer in time"),
)
_BUSY_SECONDS = 1  # how long SQLite waits for another process that writes


class CommitUncertain(Exception):
    """The connection failed during the commit: the rows may be there or not."""


class Database:
    """For `readers` threads that read, or for one that writes, which also makes missing tables."""

    def __init__(self, target: Path | str, *, readers: int = 0) -> None:
        self._path = target if isinstance(target, Path) else None
        self._engine = _sqlite(target, writes=not readers) if isinstance(target, Path) else _postgres(target, readers)
        self._file: tuple[int, int] | None = None  # the file that the connection has open
        self._has_tables = False

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, which is on disk when the block has ended. Raises CommitUncertain and those in AWAY."""
        self._follow_file()
        with self._engine.connect() as connection:
            if self._path and self._file is None:
                self._file = _identity(self._path)
            with connection.begin() as transaction:
                if not self._has_tables:
                    create(connection)
                yield connection
                try:
                    transaction.commit()
                except SQLAlchemyError as error:
                    raise CommitUncertain from error
            self._has_tables = True

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction on one snapshot. Raises those in READING."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def _follow_file(self) -> None:
        """Open the file anew if it was removed or replaced: SQLite would go on writing to the removed one."""
        if self._path and (self._file is None or self._file != _identity(self._path)):
            self._engine.dispose()
            self._file, self._has_tables = None, False
            self._path.parent.mkdir(parents=True, exist_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _sqlite(path: Path, *, writes: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        hide_parameters=True,
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
        # Readers open the file each time: it takes a fraction of a millisecond, and the file may have been replaced.
        **({"pool_size": 1, "max_overflow": 0} if writes else {"poolclass": NullPool}),
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin below, not when the driver decides
        if writes:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # in WAL, NORMAL may lose the last commits at a power failure
        else:
            connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres(url: str, readers: int) -> Engine:
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        connect_args={
            "connect_timeout": 2,
            "tcp_user_timeout": 3000,
            "application_name": "quintet",
            "options": "-c statement_timeout=5s",
        },
        pool_size=readers or 1,
        max_overflow=0,
        pool_timeout=_BUSY_SECONDS,
        pool_pre_ping=True,  # one round trip, so that callers do not see the connections of a restarted server fail
    )


def explain(error: BaseException) -> str:
    """What happened, without what drivers put into their messages: addresses, users, values.

    A driver that cannot connect gives its reason in words alone; those of an operator's mistakes are known here.
    """
    if isinstance(error, CommitUncertain):
        return f"commit: {explain(error.__cause__ or error)}"
    if isinstance(error, OtherSchema):
        return str(error)
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    code = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None)
    if not code and (found := next((what for words, what in _CONNECTING if re.search(words, str(cause))), "")):
        return found
    return f"{type(cause).__name__} {code}" if code else connection_cause(cause)
