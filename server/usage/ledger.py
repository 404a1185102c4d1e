"""The ledger in a database, as the event loop sees it: opening an entry waits for the disk, settling need not."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

from server.domain.errors import LedgerUnavailable
from server.domain.usage import Entry, Opened, Settled
from server.usage.changes import REFUSAL, Answer, Change, Heartbeat
from server.usage.writer import Writer

log = logging.getLogger(__name__)
_OPEN_SECONDS = 1.5  # longest wait for an entry
_START_SECONDS = 15.0  # the same while the database is reached for the first time
_MAX_WAITING = 4096  # changes; while so many wait, nothing is opened
_CLOSE_SECONDS = 3.0  # for calls to settle and for writing, together
_MIN_WRITE_SECONDS = 1.0  # of these
_HANG_SECONDS = 2.0  # more, for a transaction that hangs
_HEARTBEAT = Heartbeat()
_QUEUE = 1000  # entries that wait for one watcher
_Queue = asyncio.Queue[Settled | None]  # None is the end


class SqlLedger:
    """Implements `Ledger` on a SQLite file or the URL of a PostgreSQL database; `watchers` get what is settled.

    The server starts without the database. While the writer says that it is away, calls that cost are refused, and
    settlements wait in a file in `folder`, by default that of the SQLite file. Entries are kept for `retention`.
    """

    def __init__(
        self,
        target: Path | str,
        heartbeat: Heartbeat = _HEARTBEAT,
        *,
        folder: Path | None = None,
        retention: timedelta = timedelta(days=400),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        folder = target.parent if folder is None and isinstance(target, Path) else folder
        self._ended = asyncio.Event()
        self.writer = Writer(
            target,
            heartbeat,
            folder=folder,
            retention=retention,
            hand_over=partial(self._soon, self._answer),
            on_end=partial(self._soon, self._ended.set),
        )
        # Entries that are on disk and not settled there, by id, with the future of their settlement if it waits.
        self._open: dict[str, asyncio.Future[bool] | None] = {}
        self._all_settled = asyncio.Event()  # once closed
        self.watchers = Watchers()
        self._is_closed = False
        self.writer.start()

    @property
    def away(self) -> bool:
        return self.writer.away

    async def open(self, entry: Entry) -> Opened:
        if self._is_closed or self.away or self.writer.waiting >= _MAX_WAITING:
            raise LedgerUnavailable(REFUSAL)
        future: asyncio.Future[Opened] = self._loop.create_future()
        self.writer.put(Change("open", entry, future))
        try:
            async with asyncio.timeout(_OPEN_SECONDS if self.writer.was_tried else _START_SECONDS):
                return await future
        except (TimeoutError, asyncio.CancelledError) as error:
            if entry.id in self._open:  # it was written at this very moment
                self._void(entry)
            if isinstance(error, TimeoutError):
                self.writer.go_away("a transaction takes too long")
                raise LedgerUnavailable(REFUSAL) from None
            raise

    def settle(self, entry: Entry) -> asyncio.Future[bool]:
        future = self._open.get(entry.id)
        if future is None:
            future = self._loop.create_future()
            if entry.id in self._open:
                self._open[entry.id] = future
                self.writer.put(Change("settle", entry, future))
                self._note_settled()
            else:  # it was settled before
                future.set_result(True)
        return asyncio.shield(future)

    def _void(self, entry: Entry) -> None:
        self._forget(entry)
        self.writer.put(Change("void", entry))

    def _forget(self, entry: Entry) -> None:
        del self._open[entry.id]
        self._note_settled()

    def _note_settled(self) -> None:
        if self._is_closed and None not in self._open.values():
            self._all_settled.set()

    async def aclose(self) -> None:
        """Wait for calls to settle, and for the disk; a transaction that hangs is left to its thread."""
        until = self._loop.time() + _CLOSE_SECONDS
        self._is_closed = True
        self._note_settled()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS - _MIN_WRITE_SECONDS):
                await self._all_settled.wait()
        except TimeoutError:
            log.warning("%d calls did not end in time", sum(future is None for future in self._open.values()))
        self.watchers.end()
        left = max(until - self._loop.time(), _MIN_WRITE_SECONDS)
        self.writer.stop(left)
        try:
            async with asyncio.timeout(left + _HANG_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            log.error("the ledger's database hangs; the server ends without it")

    def _soon(self, do: Callable[..., object], *arguments: object) -> None:
        """Called on the writer's thread, also after a hanging writer was left alone."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(do, *arguments)

    def _answer(self, answers: Sequence[tuple[Change, Answer]]) -> None:
        for change, answer in answers:
            if change.kind == "settle" and change.future:
                self._forget(change.entry)
                change.future.set_result(answer is True)
                if answer is True:
                    self.watchers.tell(change.entry)
            elif change.kind == "open" and change.future:
                if isinstance(answer, Opened):
                    self._open[change.entry.id] = None
                    if change.future.done():  # the call has gone
                        self._void(change.entry)
                    else:
                        change.future.set_result(answer)
                elif isinstance(answer, Exception) and not change.future.done():
                    change.future.set_exception(answer)


class Watchers:
    """Watches of settled entries. A slow watcher misses some and is told how many. Use it on the event loop only."""

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
