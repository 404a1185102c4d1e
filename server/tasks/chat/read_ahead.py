"""Reading ahead: what came while its taker was busy is handed over at once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

T = TypeVar("T")
# So many are read ahead of a slow taker, and so many are handled without giving way to others.
_AHEAD = 32


async def gathered(items: AsyncIterator[T], patience: Callable[[], float]) -> AsyncGenerator[list[T], None]:
    """Lists of all that has come since the last one, one item at least, in order.

    `patience` says how many seconds to wait for the next; TimeoutError is raised after that. What `items` raises is
    raised once everything before it was taken. `items` is no longer in use when the generator is closed.
    """
    waiting: list[T] = []
    come, taken = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        try:
            async for item in items:
                waiting.append(item)
                come.set()
                if len(waiting) >= _AHEAD:
                    taken.clear()
                    await taken.wait()
        finally:
            come.set()

    reader = asyncio.create_task(read())
    try:
        while True:
            if not waiting and not reader.done():
                come.clear()
                async with asyncio.timeout(patience()):
                    await come.wait()
            if waiting:
                batch = waiting.copy()
                waiting.clear()
                taken.set()
                yield batch
            elif reader.done():
                reader.result()
                return
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
