"""Background tasks start again after they failed."""

import asyncio
import logging

import pytest

from server.domain import supervision
from server.domain.context import Context, current_or_none, set_current
from server.domain.supervision import restarts, supervised


@pytest.fixture(autouse=True)
def without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_MIN_DELAY", 0.0)


async def test_a_task_that_fails_is_logged_counted_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise KeyError("unexpected")
        if runs == 2:
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone  # a cancellation that does not end the task

    before = restarts["looking"]
    with caplog.at_level(logging.ERROR):
        await supervised("looking", run)
    assert (runs, restarts["looking"] - before) == (3, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "background task looking failed",
        "background task looking was cancelled from within",
    ]
    assert caplog.records[0].exc_info


async def test_cancelling_ends_it() -> None:
    running = asyncio.Event()

    async def run() -> None:
        running.set()
        await asyncio.Event().wait()

    task = supervised("waiting", run)
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert restarts["waiting"] == 0


async def test_it_belongs_to_no_call() -> None:
    async def run() -> None:
        assert current_or_none() is None

    set_current(Context("/quintet.v1.RagService/Reindex", "1", 0.0))
    await supervised("working", run)
    assert restarts["working"] == 0
