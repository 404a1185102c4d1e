"""Batches of like cost, the order of requests, failures that stay with their request, counters."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.domain.errors import DeadlineExceeded, ServerOverloaded
from server.inference.computation import BatchPolicy, Computation, ComputationCounters
from server.inference.queue import Item, Request, RequestQueue
from server.inference.scheduler import Scheduler
from tests.waiting import until

IN_FOURS = BatchPolicy(4, 100)


def soon() -> float:
    return time.monotonic() + 5


class Model:
    """Doubles numbers, one batch at a time as the gate lets it; 13 fails whatever it is in a batch with."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        assert self.gate.wait(5)
        if 13 in numbers:
            raise ValueError("thirteen")
        return [2 * number for number in numbers]


@pytest.fixture
async def lane() -> AsyncIterator[Scheduler]:
    made = Scheduler(1, queue_limit=64)
    yield made
    made.close()


@pytest.fixture
async def model() -> Model:
    return Model()


@pytest.fixture
async def computation(lane: Scheduler, model: Model) -> Computation:
    return Computation("model", model, lane.counters["model"], float, IN_FOURS)


async def hold(lane: Scheduler, model: Model, computation: Computation) -> asyncio.Task[list[int]]:
    """A call that occupies the lane."""
    task = asyncio.create_task(lane.map(computation, [50], deadline=soon()))
    await until(lambda: model.batches)
    return task


def call(lane: Scheduler, computation: Computation, *numbers: int) -> asyncio.Task[list[int]]:
    return asyncio.create_task(lane.map(computation, numbers, deadline=soon()))


async def test_items_of_several_calls_share_a_batch(lane: Scheduler, model: Model, computation: Computation) -> None:
    first = await hold(lane, model, computation)
    others = [call(lane, computation, 50 + number) for number in range(6)]
    await until(lambda: computation.counters.waiting == 6)
    model.gate.set()
    assert await asyncio.gather(first, *others) == [[100], [100], [102], [104], [106], [108], [110]]
    assert [len(batch) for batch in model.batches] == [1, 4, 2]
    assert computation.counters.batches == {1: 1, 4: 1, 2: 1}
    assert computation.counters.waiting == 0
    assert computation.counters.wait_seconds > 0
    assert computation.counters.compute_seconds > 0


async def test_only_items_alike_and_cheap_share_a_batch(
    lane: Scheduler, model: Model, computation: Computation
) -> None:
    first = await hold(lane, model, computation)
    others = [call(lane, computation, number) for number in (10, 100, 11, 98, 500, 501, 12)]
    await until(lambda: computation.counters.waiting == 7)
    model.gate.set()
    await asyncio.gather(first, *others)
    expected = {frozenset({10, 11, 12}), frozenset({98, 100}), frozenset({500}), frozenset({501})}
    assert {frozenset(batch) for batch in model.batches[1:]} == expected


async def test_a_free_lane_does_not_wait_for_more(lane: Scheduler, model: Model, computation: Computation) -> None:
    model.gate.set()
    assert await lane.map(computation, [1], deadline=soon()) == [2]
    assert model.batches == [[1]]


async def test_a_bad_item_does_not_fail_its_neighbours(lane: Scheduler, model: Model, computation: Computation) -> None:
    first = await hold(lane, model, computation)
    others = [call(lane, computation, number) for number in (12, 13, 14)]
    await until(lambda: computation.counters.waiting == 3)
    model.gate.set()
    found = await asyncio.gather(first, *others, return_exceptions=True)
    assert found[:2] == [[100], [24]]
    assert isinstance(found[2], ValueError)
    assert found[3] == [28]
    assert computation.counters.retried == 3
    assert model.batches.count([13]) == 1, "once alone is enough"


async def test_too_few_results_fail_the_call(lane: Scheduler) -> None:
    computation = Computation("short", lambda numbers: list(numbers)[1:], lane.counters["short"])
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        await lane.map(computation, [1], deadline=soon())


async def test_an_expired_call_does_not_take_its_batch_along(
    lane: Scheduler, model: Model, computation: Computation
) -> None:
    first = await hold(lane, model, computation)
    late = asyncio.create_task(lane.map(computation, [51], deadline=time.monotonic() + 0.01))
    others = [call(lane, computation, 52), call(lane, computation, 53)]
    await until(lambda: computation.counters.waiting == 3)
    await asyncio.sleep(0.02)  # its deadline passes
    model.gate.set()
    assert await asyncio.gather(first, *others) == [[100], [104], [106]]
    with pytest.raises(DeadlineExceeded):
        await late
    assert [51] not in model.batches
    assert not any(51 in batch for batch in model.batches)
    assert computation.counters.expired == 1


async def test_cancelled_items_leave_the_queue_at_once(lane: Scheduler, model: Model, computation: Computation) -> None:
    first = await hold(lane, model, computation)
    gone, stays = call(lane, computation, 51, 52, 53), call(lane, computation, 54)
    await until(lambda: computation.counters.waiting == 4)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (computation.counters.waiting, computation.counters.abandoned) == (1, 3)
    model.gate.set()
    assert [*await asyncio.gather(first, stays)] == [[100], [108]]
    assert model.batches == [[50], [54]]


async def test_compute_for_callers_that_have_gone_is_counted(
    lane: Scheduler, model: Model, computation: Computation
) -> None:
    first = await hold(lane, model, computation)
    first.cancel()
    await asyncio.sleep(0.02)
    model.gate.set()
    await until(lambda: computation.counters.compute_seconds)
    assert computation.counters.wasted_seconds == computation.counters.compute_seconds >= 0.02
    assert await lane.map(computation, [1], deadline=soon()) == [2]
    assert computation.counters.wasted_seconds < computation.counters.compute_seconds


async def test_refusals_are_counted(lane: Scheduler, model: Model, computation: Computation) -> None:
    first = await hold(lane, model, computation)
    waiting = [call(lane, computation, number) for number in range(14, 78)]
    await until(lambda: computation.counters.waiting == 64)
    with pytest.raises(ServerOverloaded):
        await lane.map(computation, [1], deadline=soon())
    assert computation.counters.refused == 1
    model.gate.set()
    await asyncio.gather(first, *waiting)


async def test_work_that_cannot_finish_in_time_is_not_begun(lane: Scheduler) -> None:
    begun: list[str] = []

    def slowly(texts: Sequence[str]) -> Sequence[str]:
        begun.extend(texts)
        time.sleep(0.1)
        return texts

    computation = Computation("slow", slowly, lane.counters["slow"], len)
    assert await lane.map(computation, ["a"], deadline=soon()) == ["a"]
    with pytest.raises(DeadlineExceeded):
        await lane.map(computation, ["b"], deadline=time.monotonic() + 0.05)
    assert begun == ["a"]


def test_what_was_slow_once_is_tried_again() -> None:
    computation = Computation("", list, ComputationCounters())
    computation.observe(seconds=1.0, cost=1.0)
    refusals = [computation.cannot_finish(1.0, 0.5) for _ in range(10)]
    assert refusals[0]
    assert not refusals[-1]


async def test_a_call_of_many_long_texts_does_not_starve_short_ones(lane: Scheduler) -> None:
    """64 items of 5 ms from one caller, then short ones from another: each waits for an item or two, not for 64."""
    order: list[int] = []

    def compute(numbers: Sequence[int]) -> Sequence[int]:
        order.extend(numbers)
        time.sleep(sum(numbers) / 200_000)
        return numbers

    computation = Computation("text", compute, lane.counters["text"], float, IN_FOURS)
    await lane.map(computation, [100], deadline=soon())  # it knows now how fast it is
    long = asyncio.create_task(lane.map(computation, [1000] * 64, deadline=soon()))
    await until(lambda: len(order) > 3)
    for _ in range(5):
        before = len(order)
        await lane.map(computation, [20], deadline=soon())
        assert order.index(20, before) - before <= 2
    assert not long.done()
    assert len(await long) == 64


costs = st.lists(st.floats(1, 20), min_size=1, max_size=4)


@given(calls=st.lists(costs, min_size=1, max_size=4))
@settings(max_examples=30)
def test_no_call_starves_however_many_short_ones_come(calls: list[list[float]]) -> None:
    """The queue alone, with one more short request before every batch: each item comes out, once."""
    computation = Computation("", list, ComputationCounters(), float)
    computation.observe(seconds=1.0, cost=1.0)
    queue = RequestQueue(lanes=1)
    pending = [Request(computation, costs, 0.0, 10.0) for costs in calls]
    for call in pending:
        queue.push(call)
    count, total = sum(map(len, calls)), sum(map(sum, calls))
    ours: list[Item] = []
    batches = 0
    while any(call.items for call in pending):
        queue.push(Request(computation, [1.0], 0.0, 10.0))
        first = queue.first()
        assert first is not None
        ours += [item for item in queue.take_batch(first, now=0.0) if item.request in pending]
        batches += 1
        assert batches <= (total + count) * (count + 2), "short ones are served without end"
    assert sorted(item.cost for item in ours) == sorted(cost for call in calls for cost in call)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_calls_end_in_the_order_of_equal_shares(sizes: list[int]) -> None:
    """One lane, items of a second each, all calls there from the beginning: the smaller one ends first, those alike one
    after the other as they came, and each no later than it would with equal shares.
    """
    computation = Computation("", list, ComputationCounters(), float)
    computation.observe(seconds=1.0, cost=1.0)
    queue = RequestQueue(lanes=1)
    calls = [Request(computation, [1.0] * size, 0.0, 1000.0) for size in sizes]
    for each in calls:
        queue.push(each)
    ends: dict[int, int] = {}
    seconds = 0
    while (first := queue.first()) is not None:
        seconds += len(queue.take_batch(first, now=0.0))
        if not first.items:
            ends[calls.index(first)] = seconds
    assert seconds == sum(sizes)
    for number, size in enumerate(sizes):
        with_equal_shares = sum(min(size, other) for other in sizes)
        assert ends[number] <= with_equal_shares
    in_order = sorted(range(len(sizes)), key=lambda number: sizes[number])
    assert list(ends) == in_order
    assert list(ends.values()) == list(itertools.accumulate(sizes[number] for number in in_order))
