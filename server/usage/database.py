"""Connections to the ledger's database: a SQLite file, or PostgreSQL by its URL."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from server.domain.network import connection_cause
from server.usage.tables import OtherSchema, create

READING: tuple[type[Exception], ...] = (SQLAlchemyError, OSError, OtherSchema)

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
    ("server closed the connection|connection is closed|connection is lost", "the connection broke off"),
)
_BUSY_SECONDS = 1  # how long SQLite waits for another process that writes
_WRITE_SECONDS = 1.5  # for a statement; no call waits longer for its entry
_READ_SECONDS = 10.0
_STEPS = 10_000  # of SQLite's virtual machine between two looks at whether a read is abandoned: a millisecond


class CommitUncertain(Exception):
    """The connection failed during the commit: the rows may be there or not."""


WRITING: tuple[type[Exception], ...] = (*READING, CommitUncertain)


def is_away(error: Exception) -> bool:
    """Whether the database cannot be written to for now: it is unreachable, hangs, is full or read-only, or lacks
    rights or tables. False for errors of an entry's own values, and for faults of this server.
    """
    if isinstance(error, DataError | IntegrityError):
        return False
    # Other errors of statements are what drivers raise for values that they cannot convert.
    return isinstance(error, DBAPIError | OSError | OtherSchema | CommitUncertain) or (
        isinstance(error, SQLAlchemyError) and getattr(error, "orig", None) is None
    )


class Database:
    """For `readers` threads that read, or for one that writes, which also makes missing tables."""

    def __init__(self, target: Path | str, *, readers: int = 0) -> None:
        self._path = target if isinstance(target, Path) else None
        if isinstance(target, Path):
            self._engine = _sqlite(target, writes=not readers)
        else:
            from server.usage.postgres import postgres_engine  # its driver is an extra

            seconds = _READ_SECONDS if readers else _WRITE_SECONDS
            self._engine = postgres_engine(target, pool_size=readers or 1, seconds=seconds)
        event.listen(self._engine, "handle_error", _replace_connection)
        self._file: tuple[int, int] | None = None  # the file that the connection has open
        self._has_tables = False

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, which is on disk when the block has ended. Raises CommitUncertain and what `is_away` knows."""
        self._follow_file()
        try:
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
        except Exception:
            self._has_tables = False  # they may have been removed
            raise
        self._has_tables = True

    @contextmanager
    def reading(self, is_abandoned: Callable[[], bool]) -> Iterator[Connection]:
        """A transaction on one snapshot. Raises those in READING, also when the read is abandoned."""
        with self._engine.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            if self._path:
                driver.set_progress_handler(is_abandoned, _STEPS)
            else:
                driver.is_abandoned = is_abandoned
            try:
                with connection.begin():
                    yield connection
            finally:
                if not self._path:
                    driver.is_abandoned = lambda: False  # the next read may get this connection

    def close(self) -> None:
        self._engine.dispose()

    def _follow_file(self) -> None:
        """Open the file anew if it was removed or replaced: SQLite would go on writing to the removed one."""
        if self._path and (self._file is None or self._file != _identity(self._path)):
            self._engine.dispose()
            self._file, self._has_tables = None, False
            self._path.parent.mkdir(parents=True, exist_ok=True)


def _replace_connection(context: ExceptionContext) -> None:
    """A connection is kept only after errors of values: one that became read-only, for instance, may stay so."""
    if not isinstance(context.sqlalchemy_exception, DataError | IntegrityError):
        context.is_disconnect = True


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
