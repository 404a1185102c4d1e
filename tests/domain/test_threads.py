"""Threads for one purpose: bounded, in order, and gone when they have no work."""

import asyncio
import threading
from functools import partial

import pytest

from server.domain.threads import Threads
from tests.waiting import until


async def test_work_waits_in_line_and_never_for_another_purpose() -> None:
    release = threading.Event()
    few, others = Threads("few", 2), Threads("others", 1)
    waiting = [asyncio.create_task(few.run(partial(release.wait, 10))) for _ in range(5)]
    await asyncio.sleep(0)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("few") == 2
    assert await others.run(lambda: "at once") == "at once"
    waiting[-1].cancel()  # it has not begun
    release.set()
    assert await asyncio.gather(*waiting[:-1]) == [True] * 4


async def test_what_has_begun_is_run_to_its_end() -> None:
    begun, release = threading.Event(), threading.Event()
    done: list[bool] = []

    def work() -> None:
        begun.set()
        done.append(release.wait(10))

    call = asyncio.create_task(Threads("write", 1).run_to_end(work))
    await until(begun.is_set)
    call.cancel()
    await asyncio.sleep(0.01)
    assert not call.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert done == [True]


async def test_errors_come_back_and_idle_threads_end() -> None:
    idle = Threads("idle", idle_seconds=0.01)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await idle.run(lambda: 1 // 0)
        await until(lambda: "idle" not in [thread.name for thread in threading.enumerate()])
