"""Watches of settled entries. A slow watcher misses some and is told how many."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from server.domain.usage import Entry, Settled

_QUEUE = 1000  # entries that wait for one watcher
_Queue = asyncio.Queue[Settled | None]  # None is the end


class Watchers:
    """Use it on the event loop only."""

    def __init__(self) -> None:
        self._missed: dict[_Queue, int] = {}  # since the latest entry in the queue
        self._ended = False

    @contextmanager
    def watch(self) -> Iterator[AsyncIterator[Settled]]:
        """Entries from now on, until the block is left or end() is called."""
        queue = _Queue()
        self._missed[queue] = 0
        if self._ended:
            queue.put_nowait(None)
        try:
            yield _until_end(queue)
        finally:
            del self._missed[queue]

    def tell(self, entry: Entry) -> None:
        for queue, missed in self._missed.items():
            if queue.qsize() >= _QUEUE:
                self._missed[queue] += 1
            else:
                queue.put_nowait(Settled(entry, missed))
                self._missed[queue] = 0

    def end(self) -> None:
        """All watches end after the entries that wait."""
        self._ended = True
        for queue in self._missed:
            queue.put_nowait(None)


async def _until_end(queue: _Queue) -> AsyncIterator[Settled]:
    while (settled := await queue.get()) is not None:
        yield settled
