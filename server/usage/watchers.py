"""Who wants to hear of every row that is settled. A slow one misses some, and is told how many."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from server.usage.ledger import Record, Settled

_QUEUE = 1000  # rows that wait for one reader


class Watchers:
    """All of them. Used on the event loop alone."""

    def __init__(self) -> None:
        self._watchers: set[_Watcher] = set()
        self._ended = False

    @contextmanager
    def watch(self) -> Iterator[AsyncIterator[Settled]]:
        """Rows from now on, until the block or everything ends."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        if self._ended:
            watcher.end()
        try:
            yield watcher.rows()
        finally:
            self._watchers.discard(watcher)

    def tell(self, record: Record) -> None:
        """A row was settled."""
        for watcher in self._watchers:
            watcher.tell(record)

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        for watcher in self._watchers:
            watcher.end()


class _Watcher:
    def __init__(self) -> None:
        self._queue: deque[Settled] = deque()
        self._missed = 0
        self._ended = False
        self._changed = asyncio.Event()

    def tell(self, record: Record) -> None:
        if len(self._queue) >= _QUEUE:
            self._missed += 1
            return
        self._queue.append(Settled(record, self._missed))
        self._missed = 0
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def rows(self) -> AsyncIterator[Settled]:
        while True:
            while self._queue:
                yield self._queue.popleft()
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()
