"""Reading ahead: nothing is lost, reordered, awaited for ever or left running."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from server.tasks.chat.read_ahead import ReadAhead


def patience() -> float:
    return 5.0


async def test_what_came_meanwhile_is_handed_over_together() -> None:
    batches = []
    left = asyncio.Event()

    async def numbers() -> AsyncIterator[int]:
        for number in range(1000):
            yield number
        left.set()

    async with ReadAhead(numbers(), patience) as ahead:
        async for batch in ahead:
            batches.append(batch)
            await asyncio.sleep(0)
    assert [number for batch in batches for number in batch] == list(range(1000))
    assert 10 < len(batches) < 100  # bounded, and far fewer than items
    assert left.is_set()


async def test_an_item_that_is_alone_does_not_wait_for_others() -> None:
    more = asyncio.Event()

    async def slow() -> AsyncIterator[str]:
        yield "first"
        await more.wait()
        yield "second"

    async with ReadAhead(slow(), patience) as batches:
        assert await anext(batches) == ["first"]
        more.set()
        assert await anext(batches) == ["second"]
        with pytest.raises(StopAsyncIteration):
            await anext(batches)


async def test_an_error_comes_after_what_came_before_it() -> None:
    async def breaking() -> AsyncIterator[int]:
        yield 1
        raise ValueError("broken")

    async with ReadAhead(breaking(), patience) as batches:
        assert await anext(batches) == [1]
        with pytest.raises(ValueError, match="broken"):
            await anext(batches)


async def test_silence_ends_and_closing_ends_the_reader() -> None:
    ended = asyncio.Event()

    async def silent() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with ReadAhead(silent(), lambda: 0.01) as batches:
        assert await anext(batches) == [1]
        with pytest.raises(TimeoutError):
            await anext(batches)
    assert ended.is_set()
