"""Reading ahead of a slow consumer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, Self, TypeVar

T = TypeVar("T")
_AHEAD = 32  # items read ahead of a slow consumer, and handled without giving way to other tasks


class ReadAhead(Generic[T]):
    """Iterates over lists of all items that arrived since the last one, at least one, in order.

    Waiting longer for the next item than `patience` says, in seconds, raises TimeoutError. An error of `items` is
    raised after the items before it. Once `has_ended` says that nothing is missing, both just end the iteration.
    `items` is no longer in use when the block has ended.
    """

    def __init__(
        self, items: AsyncIterator[T], patience: Callable[[], float], has_ended: Callable[[], bool] = lambda: False
    ) -> None:
        self._items = items
        self._patience = patience
        self._has_ended = has_ended
        self._waiting: list[T] = []
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for item in self._items:
                self._waiting.append(item)
                self._arrived.set()
                if len(self._waiting) >= _AHEAD:
                    self._taken.clear()
                    await self._taken.wait()
        finally:
            self._arrived.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        if not self._waiting:
            try:
                await self._wait()
            except Exception:
                if not self._has_ended():
                    raise
        if not self._waiting:
            raise StopAsyncIteration
        batch, self._waiting = self._waiting, []
        self._taken.set()
        return batch

    async def _wait(self) -> None:
        """For the next item, or the end."""
        if not self._reader.done():
            self._arrived.clear()
            async with asyncio.timeout(self._patience()):
                await self._arrived.wait()
        if not self._waiting:
            await self._reader  # raises what it raised
