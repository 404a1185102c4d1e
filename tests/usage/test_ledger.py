"""The ledger on SQLite and PostgreSQL: rows, repeated requests, sums, and servers that end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.domain.errors import LedgerUnavailable, RequestIdReused
from server.domain.money import Cost
from server.domain.usage import Entry, Opened, Outcome, Selection, Usage, UsageSource
from server.usage import ledger as ledger_module
from server.usage.changes import Heartbeat
from server.usage.ledger import SqlLedger, Watchers
from server.usage.reader import SqlReader
from tests.ledgers import entry, postgres, settled, target, used

__all__ = ["postgres", "target"]  # fixtures
EVER = datetime(2020, 1, 1, tzinfo=UTC)
QUICK = Heartbeat(beat_seconds=0.05, lost_seconds=1.0)


@pytest.fixture
async def ledger(target: Path | str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SqlLedger]:
    monkeypatch.setattr(ledger_module, "_CLOSE_SECONDS", 1.0)
    async with aclosing(SqlLedger(target)) as running:
        yield running


@pytest.fixture
async def reader(target: Path | str) -> AsyncIterator[SqlReader]:
    found = SqlReader(target)
    yield found
    await found.close()


@asynccontextmanager
async def killed(target: Path | str) -> AsyncIterator[SqlLedger]:
    """A ledger whose process is gone when the block is left, as far as a database can tell."""
    ledger = SqlLedger(target, QUICK)
    yield ledger

    def die(*_: object, **__: object) -> None:
        raise OSError

    ledger.writer._write = die  # type: ignore[method-assign]
    ledger.writer.stop(0.0)
    await asyncio.to_thread(ledger.writer.join)


async def rows(reader: SqlReader, **wanted: str) -> list[Entry]:
    return await reader.entries(Selection(**wanted), before="", limit=1000)  # type: ignore[arg-type]


async def test_a_row_is_there_before_the_call_and_whole_after_it(ledger: SqlLedger, reader: SqlReader) -> None:
    begun = entry()
    opened = await ledger.open(begun)
    assert await rows(reader) == [begun]
    assert (begun.outcome, begun.ended) == (Outcome.OPEN, None)
    assert begun.usage == Usage(0, 0, UsageSource.UNAVAILABLE, 0, "USD")
    ended = settled(opened)
    assert await ledger.settle(ended)
    assert await rows(reader) == [ended]
    assert ended == replace(
        begun, usage=used(), outcome=Outcome.OK, model="gpt", model_version="gpt-2026", ended=ended.ended
    )


async def test_settling_again_changes_nothing(ledger: SqlLedger, reader: SqlReader) -> None:
    opened = await ledger.open(entry())
    first, second = ledger.settle(settled(opened)), ledger.settle(settled(opened, 99, 99, 99))
    assert all(await asyncio.gather(first, second))
    assert await ledger.settle(settled(opened, 99, 99, 99))
    assert [row.usage.total_tokens for row in await rows(reader)] == [14]


async def test_many_at_once_are_all_written(ledger: SqlLedger, reader: SqlReader) -> None:
    async def call(number: int) -> None:
        opened = await ledger.open(entry(f"r-{number}"))
        await ledger.settle(settled(opened, number, 1, number))

    await asyncio.gather(*(call(number) for number in range(300)))
    found = await rows(reader)
    assert sorted(row.usage.prompt_tokens for row in found) == list(range(300))
    assert await reader.spent("acme", None, EVER) == Cost(sum(range(300)) + 300, sum(range(300)))


# ---------------------------------------------------------------- the same request id


async def test_a_repeated_request_is_not_charged_again(ledger: SqlLedger, reader: SqlReader) -> None:
    await ledger.settle(settled(await ledger.open(entry())))
    for _ in range(3):
        again = await ledger.open(entry())
        assert again.earlier == used()
        await ledger.settle(settled(again, 12, 4, 8))
    with pytest.raises(RequestIdReused, match="repeated 3 times"):
        await ledger.open(entry())
    newest, *_, first = await rows(reader)
    assert (bool(newest.repeat_of), newest.usage.total_tokens, newest.usage.cost_micros) == (True, 16, 0)
    assert (first.repeat_of, first.usage.cost_micros) == ("", 7)
    assert await reader.spent("acme", None, EVER) == Cost(14, 7)


async def test_a_request_id_belongs_to_one_request(ledger: SqlLedger) -> None:
    opened = await ledger.open(entry())
    with pytest.raises(RequestIdReused, match="still runs"):
        await ledger.open(entry())
    with pytest.raises(RequestIdReused, match="another request"):
        await ledger.open(entry(request_digest="e"))
    assert (await ledger.open(entry(tenant="other"))).earlier is None
    await ledger.settle(settled(opened))
    with pytest.raises(RequestIdReused, match="another request"):
        await ledger.open(entry(request_digest="e"))


async def test_what_was_not_charged_may_be_tried_again(ledger: SqlLedger) -> None:
    for _ in range(5):
        opened = await ledger.open(entry())
        assert opened.earlier is None
        await ledger.settle(settled(opened, 0, 0, 0, outcome=Outcome.FAILED))


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.DEADLINE])
async def test_a_repeat_of_a_broken_off_call_is_charged(ledger: SqlLedger, reader: SqlReader, outcome: Outcome) -> None:
    """Otherwise answers would be free: cancel after the last token but one, and repeat the request."""
    await ledger.settle(settled(await ledger.open(entry()), 10, 1, 6, outcome=outcome))
    again = await ledger.open(entry())
    assert again.earlier is None
    await ledger.settle(settled(again, 10, 4, 9))
    assert (await ledger.open(entry())).earlier == used(10, 4, 9)
    assert (await reader.spent("acme", None, EVER)).micros == 15


async def test_a_day_later_it_is_forgotten(ledger: SqlLedger) -> None:
    now = datetime.now(UTC)
    for ago, earlier in ((timedelta(hours=24, minutes=1), False), (timedelta(0), False), (timedelta(0), True)):
        opened = await ledger.open(entry(started=now - ago))
        assert (opened.earlier is not None) == earlier
        await ledger.settle(settled(opened))


async def test_ids_that_the_server_made_up_are_not_looked_up(ledger: SqlLedger) -> None:
    first = await ledger.open(entry(brought_id=False))
    second = await ledger.open(entry(brought_id=False))
    third = await ledger.open(entry())
    assert first.earlier is second.earlier is third.earlier is None


async def test_two_servers_do_not_both_begin_one_request(target: Path | str) -> None:
    """However they meet: one opens the row, all others are refused."""
    async with aclosing(SqlLedger(target)) as one, aclosing(SqlLedger(target)) as other:
        for attempt in range(10):
            opens = [ledger.open(entry(f"r-{attempt}")) for ledger in (one, other) for _ in range(5)]
            found = await asyncio.gather(*opens, return_exceptions=True)
            assert sorted(type(each).__name__ for each in found) == ["Opened", *["RequestIdReused"] * 9]
            for ledger, each in zip((one,) * 5 + (other,) * 5, found, strict=True):
                if isinstance(each, Opened):
                    ledger.settle(settled(each))


# ---------------------------------------------------------------- calls that go away, and servers


async def test_a_call_that_ends_while_opening_leaves_no_open_entry(ledger: SqlLedger, reader: SqlReader) -> None:
    for steps in range(8):
        opens = [asyncio.create_task(ledger.open(entry(brought_id=False))) for _ in range(20)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in opens:
            task.cancel()
        await asyncio.gather(*opens, return_exceptions=True)
    await ledger.settle(settled(await ledger.open(entry("last"))))

    async def open_rows() -> int:
        return sum(row.outcome is Outcome.OPEN for row in await rows(reader))

    async with asyncio.timeout(10):
        while await open_rows():  # noqa: ASYNC110  # the database is asked
            await asyncio.sleep(0.01)
    assert {row.usage.total_tokens for row in await rows(reader)} <= {0, 14}


async def test_waiting_for_settling_is_optional(ledger: SqlLedger, reader: SqlReader) -> None:
    opened = await ledger.open(entry())

    async def call() -> None:
        await ledger.settle(settled(opened))

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    assert await ledger.settle(settled(opened, 1, 1, 1))
    assert (await rows(reader))[0].usage.total_tokens == 14


async def test_calls_of_a_server_that_was_killed_are_lost_and_charged_their_prompt(
    target: Path | str, reader: SqlReader
) -> None:
    async with killed(target) as dead:
        await dead.open(entry("open"))
        await dead.settle(settled(await dead.open(entry("settled"))))
        await dead.settle(settled(await dead.open(entry("again"))))
        await dead.open(entry("again"))
    async with aclosing(SqlLedger(target, QUICK)) as ledger:
        await lost(reader, 2)
        found = {(row.request_id, bool(row.repeat_of)): row for row in await rows(reader)}
        estimate = Usage(10, 0, UsageSource.ESTIMATED, 5, "USD")
        assert found["open", False].usage == estimate
        assert found["open", False].ended is not None
        assert found["again", True].usage == replace(estimate, cost_micros=0)
        assert found["settled", False].outcome is Outcome.OK
        again = await ledger.open(entry("open"))
        assert again.earlier == estimate
        await ledger.settle(settled(again))


async def lost(reader: SqlReader, number: int) -> None:
    async with asyncio.timeout(20):
        while sum(row.outcome is Outcome.LOST for row in await rows(reader)) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_servers_that_live_keep_their_rows(target: Path | str, reader: SqlReader) -> None:
    async with (
        aclosing(SqlLedger(target, Heartbeat(0.05, 3.0))) as one,
        aclosing(SqlLedger(target, Heartbeat(0.05, 3.0))),
    ):
        opened = await one.open(entry())
        async with killed(target) as dead:
            await dead.open(entry("dead"))
        await lost(reader, 1)  # so the others did look
        assert [row.outcome for row in await rows(reader, request_id="r-1")] == [Outcome.OPEN]
        await one.settle(settled(opened))
    assert [row.outcome for row in await rows(reader, request_id="r-1")] == [Outcome.OK]


async def test_a_server_that_was_taken_for_dead_may_still_settle(target: Path | str, reader: SqlReader) -> None:
    async with aclosing(SqlLedger(target, Heartbeat(beat_seconds=3600))) as silent:
        opened = await silent.open(entry())
        async with aclosing(SqlLedger(target, Heartbeat(0.05, 0.2))):
            await lost(reader, 1)
        await silent.settle(settled(opened))
    assert [(row.outcome, row.usage) for row in await rows(reader)] == [(Outcome.OK, used())]


async def test_stopping_waits_for_calls_and_leaves_nothing_open(
    target: Path | str, reader: SqlReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_CLOSE_SECONDS", 2.0)
    async with aclosing(SqlLedger(target)) as ledger:
        opened = [await ledger.open(entry(f"r-{number}")) for number in range(5)]

        async def settle_late() -> None:
            for each in opened[:4]:
                await asyncio.sleep(0.05)
                ledger.settle(settled(each))

        late = asyncio.create_task(settle_late())
    await late
    assert [row.outcome for row in await rows(reader)] == [Outcome.LOST, *[Outcome.OK] * 4]
    with pytest.raises(LedgerUnavailable):
        await ledger.open(entry("late"))


# ---------------------------------------------------------------- retention


async def test_old_entries_are_deleted_in_pieces(target: Path | str, reader: SqlReader) -> None:
    now = datetime.now(UTC)
    ages = [timedelta(days=days) for days in (39, 41)]
    async with aclosing(SqlLedger(target)) as ledger:
        begun = [entry(started=now - age, brought_id=False) for age in ages for _ in range(250)]
        for opened in await asyncio.gather(*map(ledger.open, begun)):
            ledger.settle(settled(opened))
    two = [SqlLedger(target, QUICK, retention=timedelta(days=40)) for _ in range(2)]
    async with aclosing(two[0]), aclosing(two[1]):
        async with asyncio.timeout(20):
            while len(await rows(reader)) > 250:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not any(ledger.writer.away for ledger in two)
    assert {(now - row.started).days for row in await rows(reader)} == {39}


# ---------------------------------------------------------------- reading


async def test_sums_and_pages(ledger: SqlLedger, reader: SqlReader) -> None:
    days = [datetime(2026, 11, day, 23, 59, 59, 999_999, tzinfo=UTC) for day in (27, 28)]
    for number, day in enumerate([*days, days[1] + timedelta(microseconds=1)]):
        for service, tenant in (("ChatService", "acme"), ("RagService", "acme"), ("ChatService", "zen")):
            begun = entry(f"{number}-{service}", started=day, service=service, tenant=tenant)
            source = UsageSource.ESTIMATED if number else UsageSource.PROVIDER
            await ledger.settle(settled(await ledger.open(begun), 10, number, 1, source=source))
    runs = await ledger.open(entry("runs", started=days[0]))
    sums = await reader.sums(Selection(), 100)
    assert [(each.day.day, each.tenant, each.service) for each in sums] == [
        (day, tenant, service)
        for day in (29, 28, 27)
        for tenant, service in (("acme", "ChatService"), ("acme", "RagService"), ("zen", "ChatService"))
    ]
    assert all((each.call_count, each.prompt_tokens, each.cost_micros) == (1, 10, 1) for each in sums)
    assert [each.estimated_count for each in sums] == [1] * 6 + [0] * 3
    chosen = Selection(tenant="acme", since=days[1], until=days[1] + timedelta(microseconds=1), service="RagService")
    assert [each.completion_tokens for each in await reader.sums(chosen, 100)] == [1]
    assert await reader.spent("acme", "RagService", days[1]) == Cost(10 + 1 + 10 + 2, 2)
    assert await reader.spent("acme", None, days[0]) == Cost(2 * (30 + 3) + 500, 6 + 600), "open ones are reserved"
    await ledger.settle(settled(runs))
    seen: list[str] = []
    while page := await reader.entries(Selection(tenant="acme"), before=seen[-1] if seen else "", limit=2):
        seen += [row.id for row in page]
    assert len(seen) == 7
    assert seen == sorted(seen, reverse=True)


async def test_watches_get_what_is_settled(ledger: SqlLedger, reader: SqlReader) -> None:
    with ledger.watchers.watch() as watched:
        for number in range(3):
            await ledger.settle(settled(await ledger.open(entry()), number + 1))
        ledger.watchers.end()
        heard = [entry async for entry, _ in watched]
    assert heard == (await rows(reader))[::-1]


async def test_a_slow_watch_gets_the_number_that_it_missed() -> None:
    watchers = Watchers()
    with watchers.watch() as quick, watchers.watch() as slow:
        for _ in range(1005):
            watchers.tell(entry())
        assert [(await anext(slow)).missed for _ in range(1000)] == [0] * 1000
        watchers.tell(entry())
        assert (await anext(slow)).missed == 5
        watchers.end()
        assert len([each async for each in quick]) == 1000
        assert [each async for each in slow] == []
    with watchers.watch() as late:
        assert [each async for each in late] == []
