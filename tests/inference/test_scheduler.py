"""Scheduler: parallel, bounded, interleaved; deadlines, cancellation and closing."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import pytest

from server.domain.errors import DeadlineExceeded, ServerOverloaded, ServerStopping
from server.domain.priority import LANES
from server.inference.computation import Computation
from server.inference.scheduler import Scheduler


async def run_all(scheduler: Scheduler, works: Sequence[Callable[[], Any]], *, deadline: float) -> list[Any]:
    computation = Computation("tested", lambda each: [work() for work in each], scheduler.counters["tested"])
    return await scheduler.map(computation, works, deadline=deadline)


def soon() -> float:
    return time.monotonic() + 5


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    made = Scheduler(2, queue_limit=2)
    yield made
    made.close()


class Gate:
    """Work that holds a lane until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self) -> str:
        self.entered.release()
        assert self.opened.wait(5)
        return threading.current_thread().name

    async def held(self, count: int) -> None:
        for _ in range(count):
            assert await asyncio.to_thread(self.entered.acquire, timeout=5)


async def test_two_lanes_work_at_once_and_off_the_loop(scheduler: Scheduler) -> None:
    gate = Gate()
    tasks = [asyncio.create_task(scheduler.run(gate, deadline=soon())) for _ in range(2)]
    await gate.held(2)
    gate.opened.set()
    assert len({*await asyncio.gather(*tasks), threading.current_thread().name}) == 3


async def test_a_full_queue_refuses_at_once_and_takes_work_again(scheduler: Scheduler) -> None:
    gate = Gate()
    tasks = [asyncio.create_task(scheduler.run(gate, deadline=soon())) for _ in range(4)]
    await gate.held(2)
    with pytest.raises(ServerOverloaded):
        await scheduler.run(gate, deadline=soon())
    gate.opened.set()
    await asyncio.gather(*tasks)
    assert await scheduler.run(lambda: 7, deadline=soon()) == 7


async def test_work_whose_deadline_passed_is_not_begun(scheduler: Scheduler) -> None:
    begun: list[int] = []
    with pytest.raises(DeadlineExceeded):
        await scheduler.run(lambda: begun.append(1), deadline=time.monotonic())
    assert not begun


async def test_cancelled_work_leaves_the_queue_unbegun(scheduler: Scheduler) -> None:
    gate, begun = Gate(), []
    holding = [asyncio.create_task(scheduler.run(gate, deadline=soon())) for _ in range(2)]
    await gate.held(2)
    waiting = [asyncio.create_task(scheduler.run(lambda: begun.append(1), deadline=soon())) for _ in range(2)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*waiting, return_exceptions=True))
    gate.opened.set()
    await asyncio.gather(*holding)
    await run_all(scheduler, [lambda: None] * 4, deadline=soon())  # what was left in the queue would have run by now
    assert not begun


async def test_the_error_of_the_work_reaches_the_caller(scheduler: Scheduler) -> None:
    with pytest.raises(ZeroDivisionError):
        await scheduler.run(lambda: 1 // 0, deadline=soon())


async def test_run_all_keeps_the_order_and_uses_every_lane(scheduler: Scheduler) -> None:
    threads = set()

    def part(number: int) -> int:
        threads.add(threading.current_thread().name)
        time.sleep(0.001 * (20 - number))
        return number

    numbers = range(20)
    assert await run_all(scheduler, [partial(part, n) for n in numbers], deadline=soon()) == list(numbers)
    assert len(threads) == 2
    assert await run_all(scheduler, [], deadline=soon()) == []


async def test_a_small_request_overtakes_a_large_one(scheduler: Scheduler) -> None:
    done = []
    large = asyncio.create_task(run_all(scheduler, [lambda: time.sleep(0.005)] * 40, deadline=soon()))
    large.add_done_callback(lambda _: done.append("large"))
    await asyncio.sleep(0.02)
    await scheduler.run(lambda: None, deadline=soon())
    done.append("small")
    await large
    assert done == ["small", "large"]


async def test_a_part_that_fails_ends_the_request(scheduler: Scheduler) -> None:
    begun: list[int] = []

    def part(number: int) -> None:
        begun.append(number)
        time.sleep(0.002)
        if number == 3:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await run_all(scheduler, [partial(part, n) for n in range(200)], deadline=soon())
    await run_all(scheduler, [lambda: None] * 4, deadline=soon())
    assert len(begun) < 10


async def test_a_deadline_that_passes_between_parts_ends_the_request(scheduler: Scheduler) -> None:
    begun: list[int] = []

    def part() -> None:
        begun.append(1)
        time.sleep(0.02)

    with pytest.raises(DeadlineExceeded):
        await run_all(scheduler, [part] * 100, deadline=time.monotonic() + 0.05)
    assert 0 < len(begun) < 20


async def test_closing_refuses_what_waits_and_finishes_what_runs() -> None:
    scheduler, gate = Scheduler(1, queue_limit=4), Gate()
    running = asyncio.create_task(scheduler.run(gate, deadline=soon()))
    await gate.held(1)
    waiting = asyncio.create_task(scheduler.run(lambda: None, deadline=soon()))
    await asyncio.sleep(0)
    threading.Timer(0.05, gate.opened.set).start()
    await asyncio.to_thread(scheduler.close)
    assert (await running).startswith("lane")
    with pytest.raises(ServerStopping):
        await waiting
    with pytest.raises(ServerStopping):
        await scheduler.run(lambda: None, deadline=soon())


async def test_lanes_give_way_to_the_loop() -> None:
    scheduler = Scheduler(1, queue_limit=1)
    try:
        found = await scheduler.run(lambda: os.getpriority(os.PRIO_PROCESS, 0), deadline=time.monotonic() + 20)
        assert found == min(19, os.getpriority(os.PRIO_PROCESS, 0) + LANES)
    finally:
        scheduler.close()
