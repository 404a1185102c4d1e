"""Connections to PostgreSQL that end when the server does not answer, or when the answer is no longer needed."""

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, create_engine, event, make_url

_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 2
_CANCEL_SECONDS = 0.5
T = TypeVar("T")


def never() -> bool:
    return False


class BoundedConnection(psycopg.Connection[Any]):
    """Waits at most `seconds` for each statement, because a server that hangs keeps its connections, and no longer
    than until `is_abandoned`.
    """

    seconds = 2.0
    is_abandoned: Callable[[], bool] = staticmethod(never)

    def wait(self, gen: PQGen[T], interval: float = _POLL_SECONDS, timeout: float | None = None) -> T:
        return super().wait(self._bounded(gen), _POLL_SECONDS)  # the bound replaces timeouts, which are not used here

    def _bounded(self, gen: PQGen[T]) -> Generator[Any, Any, T]:
        until = time.monotonic() + self.seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and (self.is_abandoned() or time.monotonic() >= until):
                    self._give_up()
                wanted = gen.send(ready)
        except StopIteration as ended:
            result: T = ended.value
            return result

    def _give_up(self) -> None:
        try:
            if self.is_abandoned():
                self.cancel_safe(timeout=_CANCEL_SECONDS)
        finally:
            self.close()
        raise psycopg.OperationalError("timed out: the server did not answer")


def postgres_engine(url: str, *, pool_size: int, seconds: float) -> Engine:
    """Each statement takes `seconds` at most."""
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        connect_args={
            "connect_timeout": _CONNECT_SECONDS,
            "tcp_user_timeout": 3000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "application_name": "quintet",
            # The second ends the transaction of another server that hangs, and with it the locks.
            "options": f"-c statement_timeout={int(seconds * 1000)} -c idle_in_transaction_session_timeout=5s",
        },
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=1.0,
        pool_pre_ping=True,  # one round trip, so that callers do not see the connections of a restarted server fail
    )

    @event.listens_for(engine, "do_connect")
    def connect(dialect: object, record: object, arguments: Any, options: Any) -> BoundedConnection:
        connection = BoundedConnection.connect(*arguments, **options)
        connection.seconds = seconds + 2 * _POLL_SECONDS  # the server's own time limit comes first
        return connection

    return engine
