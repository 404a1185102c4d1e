"""The ledger's database is away in all the ways that PostgreSQL knows: what was served is in the ledger, once."""

import asyncio
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from contextlib import aclosing, closing, suppress
from pathlib import Path

import pytest

from server.domain.errors import LedgerUnavailable
from server.domain.models import ModelIdentity
from server.domain.usage import Entry, Outcome, Selection
from server.usage import ledger as ledger_module
from server.usage.changes import Heartbeat
from server.usage.ledger import SqlLedger
from server.usage.reader import SqlReader
from tests.ledgers import entry, postgres, settled, used
from tests.postgres import Postgres
from tests.waiting import until

__all__ = ["postgres"]  # a fixture
QUICK = Heartbeat(beat_seconds=0.05, lost_seconds=600.0)
READ_ONLY = "ALTER SYSTEM SET default_transaction_read_only = on"
WRITABLE = "ALTER SYSTEM RESET default_transaction_read_only"
OF_DATABASE = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I %s', current_database()); END $$"
RELOAD = "SELECT pg_reload_conf()"
NO_TABLES = [f"DROP TABLE quintet_{name}" for name in ("calls", "instances", "schema")]
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"
Spell = Callable[[Postgres, str], None]


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_CLOSE_SECONDS", 1.0)


async def all_rows(target: Path | str) -> list[Entry]:
    reader = SqlReader(target)
    try:
        return await reader.entries(Selection(), before="", limit=10_000)
    finally:
        await reader.close()


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


class Traffic:
    """Calls one after the other in eight tasks; `served` are the ids of those that were opened, and hence answered."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.served: set[str] = set()
        self._ledger = ledger
        self._is_over = False
        self._tasks = [asyncio.create_task(self._calls()) for _ in range(8)]

    async def _calls(self) -> None:
        while not self._is_over:
            with suppress(LedgerUnavailable):
                opened = await self._ledger.open(entry(brought_id=False))
                self.served.add(opened.entry.id)
                await asyncio.sleep(0.02)
                self._ledger.settle(settled(opened))
            await asyncio.sleep(0.005)

    async def more(self, number: int = 50) -> None:
        enough = len(self.served) + number
        await until(lambda: len(self.served) >= enough, 30)

    async def stop(self) -> None:
        """After the calls that run."""
        self._is_over = True
        await asyncio.gather(*self._tasks)


def by(*statements: str) -> Spell:
    return lambda server, url: server.run(url, *statements)


def restart(server: Postgres, url: str) -> None:
    server.stop()
    server.start()


SPELLS: dict[str, tuple[Spell, Spell]] = {
    "read-only": (by(READ_ONLY, RELOAD), by(WRITABLE, RELOAD)),
    "read-only for new connections": (
        by(OF_DATABASE % "SET default_transaction_read_only = on", CUT),
        by(OF_DATABASE % "RESET default_transaction_read_only"),
    ),
    "no rights": (
        by("REVOKE INSERT, UPDATE ON quintet_calls FROM app"),
        by("GRANT INSERT, UPDATE ON quintet_calls TO app"),
    ),
    "no right to settle": (
        by("REVOKE UPDATE ON quintet_calls FROM app"),
        by("GRANT UPDATE ON quintet_calls TO app"),
    ),
    "no login": (by("ALTER ROLE app NOLOGIN", CUT), by("ALTER ROLE app LOGIN")),
    "hangs": (lambda server, _: server.freeze(), lambda server, _: server.thaw()),
    "dead": (lambda server, _: server.stop(), lambda server, _: server.start()),
}


@pytest.mark.parametrize("name", SPELLS)
async def test_what_was_served_is_in_the_ledger_once(
    postgres: Postgres, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin, end = SPELLS[name]
    target = postgres.new_database("app")
    async with aclosing(SqlLedger(target, QUICK, folder=tmp_path)) as ledger:
        traffic = Traffic(ledger)
        await traffic.more()
        await asyncio.to_thread(begin, postgres, target)
        try:
            await until(lambda: ledger.writer.away)
            at_once = [asyncio.create_task(ledger.open(entry(f"r-{number}"))) for number in range(20)]
            await asyncio.sleep(0)
            assert all(task.done() and isinstance(task.exception(), LedgerUnavailable) for task in at_once)
        finally:
            await asyncio.to_thread(end, postgres, target)
        await traffic.more()
        await traffic.stop()
    found = await all_rows(target)
    ended = sorted(row.id for row in found if row.outcome is Outcome.OK)
    assert ended == sorted(traffic.served)
    assert {row.outcome for row in found} <= {Outcome.OK, Outcome.CANCELLED}, "those that were refused"
    assert all(row.usage == used() for row in found if row.outcome is Outcome.OK)
    assert files(tmp_path) == []
    lines = [record.message for record in caplog.records if "written to" in record.message]
    assert [line.partition(":")[0] for line in lines] == [
        "the ledger cannot be written to",
        "the ledger can be written to again",
    ]


async def test_tables_that_are_removed_are_made_again(postgres: Postgres, tmp_path: Path) -> None:
    target = postgres.new_database("app")
    async with aclosing(SqlLedger(target, QUICK, folder=tmp_path)) as ledger:
        opened = await ledger.open(entry())
        await asyncio.to_thread(postgres.run, target, *NO_TABLES)
        assert await ledger.settle(settled(opened))
    assert [row.usage for row in await all_rows(target)] == [used()]


async def test_a_file_that_another_process_locks(tmp_path: Path) -> None:
    target = tmp_path / "ledger.sqlite"
    async with aclosing(SqlLedger(target, QUICK)) as ledger:
        traffic = Traffic(ledger)
        await traffic.more()
        with closing(sqlite3.connect(target, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            await until(lambda: ledger.writer.away)
            await until(lambda: any(path.suffix == ".jsonl" for path in files(tmp_path)))
        await traffic.more()
        await traffic.stop()
    assert {row.id for row in await all_rows(target) if row.outcome is Outcome.OK} == traffic.served


@pytest.mark.parametrize("is_frozen", [True, False])
async def test_what_waits_survives_the_end_of_the_server(
    postgres: Postgres, tmp_path: Path, is_frozen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Ending takes a bounded time, also while the database hangs."""
    target = postgres.new_database("app")
    begin, end = SPELLS["hangs" if is_frozen else "read-only"]
    async with aclosing(SqlLedger(target, QUICK, folder=tmp_path)) as ledger:
        opens = [await ledger.open(entry(f"r-{number}")) for number in range(5)]
        await asyncio.to_thread(begin, postgres, target)
        try:
            futures = [ledger.settle(settled(opened)) for opened in opens]
            async with asyncio.timeout(10):
                await ledger.aclose()
            assert await asyncio.gather(*futures) == [False] * 5
        finally:
            await asyncio.to_thread(end, postgres, target)
    assert "5 settlements wait" in caplog.text
    assert len(files(tmp_path)) == 1
    async with aclosing(SqlLedger(target, QUICK, folder=tmp_path)) as ledger:
        await until(lambda: ledger.writer.was_tried and not ledger.writer.waiting)
    assert [(row.outcome, row.usage) for row in await all_rows(target)] == [(Outcome.OK, used())] * 5
    assert files(tmp_path) == []


KILLED = """
import asyncio, sys
from pathlib import Path
from server.usage.ledger import SqlLedger
from tests.ledgers import entry, settled

async def main():
    ledger = SqlLedger(sys.argv[1], folder=Path(sys.argv[2]))
    opened = await ledger.open(entry("killed"))
    print("opened", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    ledger.settle(settled(opened))
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_what_waits_survives_a_kill_and_a_damaged_line(postgres: Postgres, tmp_path: Path) -> None:
    target = postgres.new_database("app")
    command = [sys.executable, "-c", KILLED, target, str(tmp_path)]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert process.stdin
    assert process.stdout
    await process.stdout.readline()
    begin, end = SPELLS["read-only"]
    await asyncio.to_thread(begin, postgres, target)
    try:
        process.stdin.write(b"\n")
        await until(lambda: any(path.stat().st_size for path in files(tmp_path)))
        async with aclosing(SqlLedger(target, QUICK, folder=tmp_path)) as other:
            await until(lambda: other.writer.was_tried)
            assert not other.writer.waiting, "a server that lives keeps its file"
    finally:
        process.kill()
        await process.wait()
        await asyncio.to_thread(end, postgres, target)
    (file,) = files(tmp_path)
    with file.open("ab") as damaged:
        damaged.write(b'0badbeef {"kind": "settle"}\n')
    async with aclosing(SqlLedger(target, QUICK, folder=tmp_path)) as ledger:
        await until(lambda: ledger.writer.was_tried and not ledger.writer.waiting)
        await until(lambda: not file.exists())
    assert [row.usage for row in await all_rows(target)] == [used()]
    assert [path.suffix for path in files(tmp_path)] == [".damaged"]


async def test_texts_that_no_database_takes(tmp_path: Path, postgres: Postgres) -> None:
    for target in (tmp_path / "ledger.sqlite", postgres.new_database()):
        async with aclosing(SqlLedger(target, QUICK)) as ledger:
            opened = await ledger.open(entry("r\0", model="m\0", tenant="\ud83d"))
            identity = ModelIdentity("m\0", "\0\ud83d", "")
            ended = opened.entry.settled(used(), Outcome.OK, provider="\0", model=identity, price_version="")
            assert await ledger.settle(ended)
            again = await ledger.open(entry("r\0", model="m\0", tenant="\ud83d"))
            assert again.earlier == used()
        reader = SqlReader(target)
        found = await reader.entries(Selection(tenant="\ud83d", model="m\0", request_id="r\0"), before="", limit=5)
        assert [(row.model, row.tenant) for row in found] == [("m\ufffd", "\ufffd")] * 2
        await reader.close()
