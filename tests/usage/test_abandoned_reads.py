"""Reads of the ledger that take for ever, through a real channel: they end with their call and hold up nothing else."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from threading import active_count

import grpc
import pytest
from quintet.v1 import usage_pb2, usage_pb2_grpc

from server.app import running
from server.domain.errors import LedgerUnavailable, ServerOverloaded
from server.domain.usage import Selection
from server.settings import Settings
from server.usage import reader as reader_module
from server.usage.reader import SqlReader
from tests.ledgers import postgres
from tests.postgres import Postgres
from tests.waiting import until

__all__ = ["postgres"]  # a fixture
ENDLESS = """
    ALTER TABLE quintet_calls RENAME TO kept;
    CREATE VIEW quintet_calls AS SELECT kept.* FROM
        (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n)
        LEFT JOIN kept ON kept.id = i;
"""
REPAIRED = "DROP VIEW quintet_calls; ALTER TABLE kept RENAME TO quintet_calls;"


def change(folder: Path, script: str) -> None:
    with closing(sqlite3.connect(folder / "state" / "ledger.sqlite", timeout=20)) as database:
        database.executescript(script)


def has_tables(folder: Path) -> bool:
    with suppress(sqlite3.Error), closing(sqlite3.connect(folder / "state" / "ledger.sqlite")) as database:
        return bool(database.execute("SELECT count(*) FROM quintet_calls").fetchone())
    return False


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    (tmp_path / "models").mkdir()
    settings = Settings(data=tmp_path, port=0, llm="off", lanes=1)
    async with running(settings.model_copy(update={"shutdown_pause_seconds": 0})) as app:
        await until(partial(has_tables, tmp_path))
        yield app.address


async def test_forty_that_are_abandoned(address: str, tmp_path: Path) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = usage_pb2_grpc.UsageServiceStub(channel)
        request = usage_pb2.GetUsageRequest()
        await stub.GetUsage(request, timeout=10)
        await asyncio.to_thread(change, tmp_path, ENDLESS)
        before = active_count()
        calls = [stub.GetUsage(request, timeout=1) for _ in range(40)]
        codes = [await call.code() for call in calls]
        assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 20, "no more than 18 wait"
        assert active_count() <= before + 2
        await asyncio.to_thread(change, tmp_path, REPAIRED)
        await stub.GetUsage(request, timeout=10)
        await asyncio.to_thread(change, tmp_path, ENDLESS)
        last = stub.GetUsage(request, timeout=60)
        await asyncio.sleep(0)
        assert not last.done()  # the server's end, which follows, does not wait for it


async def test_a_read_that_takes_too_long_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_SECONDS", 0.1)
    (tmp_path / "state").mkdir()
    change(tmp_path, "CREATE TABLE quintet_calls (id, started)")
    change(tmp_path, ENDLESS)
    reader = SqlReader(tmp_path / "state" / "ledger.sqlite")
    with pytest.raises(LedgerUnavailable):
        await reader.entries(Selection(), before="", limit=1)
    await reader.close()


async def test_postgres_ends_what_is_abandoned(postgres: Postgres) -> None:
    target = postgres.new_database()
    create = "CREATE TABLE quintet_calls AS SELECT i::text AS id FROM generate_series(1, 3) i"
    await asyncio.to_thread(postgres.run, target, create)
    busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'quintet' AND state = 'active'"

    async def running_reads() -> int:
        return await asyncio.to_thread(postgres.number, target, busy)

    reader = SqlReader(target)
    locked = await asyncio.to_thread(postgres.locked, target, "quintet_calls")
    try:
        reads = [asyncio.create_task(reader.sums(Selection(), 1)) for _ in range(40)]
        async with asyncio.timeout(10):
            while await running_reads() < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        for read in reads:
            read.cancel()
        found = await asyncio.gather(*reads, return_exceptions=True)
        assert sum(isinstance(each, ServerOverloaded) for each in found) == 22
        async with asyncio.timeout(5):
            while await running_reads():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        locked.close()
        await reader.close()
