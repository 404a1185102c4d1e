"""The ledger's database goes away, fills up or is removed: what costs is refused, what was begun is written later."""

import asyncio
import subprocess
import sys
import textwrap
from contextlib import aclosing
from pathlib import Path

import pytest
from psycopg import OperationalError

from server.domain.errors import LedgerUnavailable
from server.domain.usage import Entry, Opened, Outcome, Selection
from server.observability import metrics
from server.usage.changes import Heartbeat
from server.usage.ledger import SqlLedger
from server.usage.reader import SqlReader
from tests.ledgers import entry, postgres, settled, used
from tests.postgres import Postgres

__all__ = ["postgres"]  # a fixture
QUICK = Heartbeat(beat_seconds=0.05, lost_seconds=600.0)


async def all_rows(target: Path | str) -> list[Entry]:
    reader = SqlReader(target)
    try:
        return await reader.entries(Selection(), before="", limit=10_000)
    finally:
        await reader.close()


def published(ledger: SqlLedger) -> dict[str, float]:
    """Its metrics."""
    return {metric.name: metric.samples[0].value for metric in metrics.ledger(ledger.writer)}


async def opened_again(ledger: SqlLedger) -> Opened:
    """A row, once the ledger takes them again."""
    async with asyncio.timeout(30):
        for number in range(10_000):
            try:
                return await ledger.open(entry(f"again-{number}"))
            except LedgerUnavailable:
                await asyncio.sleep(0.05)
    raise AssertionError


async def refused(ledger: SqlLedger) -> list[asyncio.Future[bool]]:
    """Until rows are refused; the settlements of those that still came."""
    futures: list[asyncio.Future[bool]] = []
    async with asyncio.timeout(60):
        for number in range(100_000):
            try:
                futures.append(ledger.settle(settled(await ledger.open(entry(f"until-{number}")))))
            except LedgerUnavailable:
                break
    return futures


async def test_a_database_that_goes_away_and_comes_back(postgres: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    target = postgres.new_database()
    async with aclosing(SqlLedger(target, QUICK)) as ledger:
        running = [await ledger.open(entry(f"r-{number}")) for number in range(3)]
        await asyncio.to_thread(postgres.stop)
        try:
            with pytest.raises(LedgerUnavailable):
                await ledger.open(entry("while it is away"))
            futures = [ledger.settle(settled(each)) for each in running]
            with pytest.raises(LedgerUnavailable):
                await SqlReader(target).sums(Selection(), 1)
            assert not any(future.done() for future in futures)
            assert published(ledger)["quintet_ledger_away"] == 1
        finally:
            await asyncio.to_thread(postgres.start)
        assert await asyncio.gather(*futures) == [True] * 3
        await ledger.settle(settled(await opened_again(ledger)))
        assert published(ledger) == {"quintet_ledger_away": 0, "quintet_ledger_waiting": 0}
    found = await all_rows(target)
    assert [row.outcome for row in found] == [Outcome.OK] * 4
    assert "calls that cost are refused" in caplog.text
    assert "can be written to again" in caplog.text
    assert "127.0.0.1" not in caplog.text, "the database's address must not be logged"


async def test_a_database_that_is_not_there_at_the_start(postgres: Postgres) -> None:
    target = postgres.new_database()
    await asyncio.to_thread(postgres.stop)
    try:
        async with aclosing(SqlLedger(target, QUICK)) as ledger:
            with pytest.raises(LedgerUnavailable):
                await ledger.open(entry())
            await asyncio.to_thread(postgres.start)
            await ledger.settle(settled(await opened_again(ledger)))
    except BaseException:
        await asyncio.to_thread(postgres.start)
        raise
    assert len(await all_rows(target)) == 1


async def test_a_file_that_is_removed(tmp_path: Path) -> None:
    """What runs is written to a new one, whole; what had ended was in the old one."""
    target = tmp_path / "state" / "ledger.sqlite"
    async with aclosing(SqlLedger(target, QUICK)) as ledger:
        running = await ledger.open(entry("runs"))
        await ledger.settle(settled(await ledger.open(entry("old"))))
        for file in target.parent.iterdir():
            file.unlink()
        target.parent.rmdir()
        await ledger.settle(settled(running))
        await ledger.settle(settled(await ledger.open(entry("new"))))
    found = {row.request_id: row for row in await all_rows(target)}
    assert {name: row.outcome for name, row in found.items()} == {"runs": Outcome.OK, "new": Outcome.OK}
    assert found["runs"].usage == used()
    assert found["runs"].tenant == "acme"


@pytest.mark.parametrize("damage", ["no database at all", ""])
async def test_a_file_that_cannot_be_used(tmp_path: Path, damage: str) -> None:
    target = tmp_path / "ledger.sqlite"
    if damage:
        target.write_text(damage * 1000)
    else:
        target.mkdir()
    async with aclosing(SqlLedger(target, QUICK)) as ledger:
        with pytest.raises(LedgerUnavailable):
            await ledger.open(entry())


async def test_tables_of_another_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import sqlite3

    target = tmp_path / "ledger.sqlite"
    async with aclosing(SqlLedger(target, QUICK)) as ledger:
        await ledger.settle(settled(await ledger.open(entry())))
    with sqlite3.connect(target) as connection:
        connection.execute("UPDATE quintet_schema SET version = 99")
    connection.close()
    async with aclosing(SqlLedger(target, QUICK)) as ledger:
        with pytest.raises(LedgerUnavailable):
            await ledger.open(entry("next"))
    assert "the ledger's tables have version 99; this server knows 1" in caplog.text


async def test_an_entry_that_no_database_takes_holds_up_no_other(postgres: Postgres) -> None:
    async with aclosing(SqlLedger(postgres.new_database(), QUICK)) as ledger:
        huge = 2**70
        opens = [ledger.open(entry(f"r-{number}", reserved_tokens=huge if number == 7 else 1)) for number in range(20)]
        found = await asyncio.gather(*opens, return_exceptions=True)
        assert [number for number, each in enumerate(found) if isinstance(each, LedgerUnavailable)] == [7]
        assert all([await ledger.settle(settled(each)) for each in found if isinstance(each, Opened)])


async def full_disk(folder: Path) -> None:
    """Runs in a process of its own, on a small file system: until it is full, then when there is room again."""
    filler = folder / "filler"
    filler.write_bytes(bytes(300_000))
    target = folder / "ledger.sqlite"
    async with aclosing(SqlLedger(target, QUICK)) as ledger:
        running = [await ledger.open(entry(f"r-{number}")) for number in range(20)]
        futures = await refused(ledger)
        futures += [ledger.settle(settled(each, 1000, 0, 0)) for each in running]
        with pytest.raises(LedgerUnavailable):
            await ledger.open(entry("full"))
        filler.unlink()
        assert all(await asyncio.gather(*futures))
        await ledger.settle(settled(await opened_again(ledger)))
    found = await all_rows(target)
    assert sum(row.usage.prompt_tokens == 1000 for row in found) == 20
    assert {row.outcome for row in found} == {Outcome.OK}
    print("nothing was lost")


def test_a_full_disk(tmp_path: Path) -> None:
    """On a real file system of 1 MiB, mounted in a namespace of its own."""
    script = f"""
        mount -t tmpfs -o size=1m none {tmp_path} &&
        exec {sys.executable} -c 'import asyncio
        from pathlib import Path
        from tests.usage.test_ledger_damage import full_disk
        asyncio.run(full_disk(Path("{tmp_path}")))'
    """
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode:
        pytest.skip("this system does not allow to mount a file system in a namespace")
    command = textwrap.dedent(script).replace("\n        ", "\n")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert "nothing was lost" in done.stdout, done.stderr


def test_the_log_says_why_the_database_cannot_be_used(postgres: Postgres) -> None:
    from server.usage.database import Database, explain

    url = postgres.new_database()
    address = url.partition("@")[2].partition("/")[0]
    for wrong, why in (
        (f"postgresql://quintet:secret@{address}/nosuch", "there is no such database"),
        (f"postgresql://stranger:secret@{address}/postgres", "there is no such user"),
        (f"{url}?sslmode=require", "the database does not support TLS"),
        (f"{url}?nosuch=1", "QUINTET_LEDGER_URL has a parameter that PostgreSQL does not know"),
        ("postgresql://quintet:secret@127.0.0.1:1/db", "connection refused"),
        ("postgresql://quintet:secret@no-such-host.invalid/db", "unknown host"),
    ):
        with pytest.raises(Exception) as caught, Database(wrong).writing():  # noqa: PT011  # the driver's own kinds
            pass
        assert explain(caught.value) == why
    password = OperationalError('connection failed: FATAL:  password authentication failed for user "quintet"')
    assert explain(password) == "wrong user or password"
