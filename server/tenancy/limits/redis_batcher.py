"""RedisBatcher: sends questions and settlements to Redis over one connection, in batches, in their order.

While Redis does not answer, questions fail at once, settlements are kept, and a task connects again every second. A
settlement is sent until it is acknowledged; the script ignores those that it has seen, in whatever order they come.

One connection with batches, because a pool of redis-py's makes the 64 callers of a busy server wait for a connection
past the time limit of a decision (docs/notes/limits-in-redis.md).
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from importlib.resources import files
from itertools import islice
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoScriptError, RedisError, ResponseError

from server.domain.network import connection_cause
from server.domain.supervision import supervised
from server.tenancy.limits.redis_message import Fill, Message, is_its_own

log = logging.getLogger(__name__)
ANSWER_SECONDS = 0.25  # for a batch
_CONNECT_SECONDS = 1.0  # no call waits for that
_LATE_SECONDS = 0.1  # more, for an answer that arrived while the event loop was blocked
_RECONNECT_SECONDS = 1.0
_CLOSE_SECONDS = 2.0
_WARN_SECONDS = 60.0
_BATCH = 32
_MOST_WAITING = 65_536  # messages
_MOST_BEFORE_QUESTION = 8192  # with more messages before it, an answer would come too late
_MOST_TRIES = 3  # of a settlement that is answered with an error of its own

_NO_REDIS = ResponseError("an answer that no script gives")

T = TypeVar("T")


class Away(Exception):
    """Redis does not answer. It may have executed the question."""


def microseconds() -> int:
    """The clock of this process, which never jumps."""
    return time.monotonic_ns() // 1000


class RedisBatcher:
    """`away` is whether Redis does not answer, `offset` how far its clock is ahead of microseconds()."""

    def __init__(self, url: str, on_reconnect: Callable[[], None]) -> None:
        self._redis = Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=None,  # batches have their own timeout
            retry=Retry(NoBackoff(), 0),
        )
        self._enter, self._settle = (
            self._redis.register_script(files(__package__).joinpath(name).read_bytes())
            for name in ("enter.lua", "settle.lua")
        )
        where = self._redis.connection_pool.connection_kwargs
        self._where = where.get("path") or f"{where.get('host')}:{where.get('port')}"  # without the password
        self._on_reconnect = on_reconnect
        self._waiting: deque[Message] = deque()
        self._work = asyncio.Event()
        self._next_warning = 0.0
        self._task: asyncio.Task[None] | None = None
        self.away = True
        self.offset = time.time_ns() // 1000 - microseconds()
        self._lost = 0  # settlements

    async def start(self) -> None:
        """Connect; if that fails, keep trying in the background."""
        await self._connect()
        self._task = supervised("limits in Redis", self._run)

    async def enter(self, keys: Sequence[str], fill: Fill) -> list[Any]:
        """The answer of enter.lua. Raises Away in less than a second."""
        if self.away or len(self._waiting) >= _MOST_BEFORE_QUESTION:
            raise Away
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(Message(self._enter, keys, fill, answer=answer))
        self._work.set()
        return await answer

    def settle(self, keys: Sequence[str], number: int, fill: Fill) -> None:
        """Run settle.lua as soon as Redis answers. It is lost if too many messages wait. Numbers ascend."""
        if len(self._waiting) >= _MOST_WAITING:
            self._lost += 1
            return
        self._waiting.append(Message(self._settle, keys, fill, number))
        self._work.set()

    async def close(self) -> None:
        """Send the settlements, for at most two seconds."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while self._waiting and await self._next_batch():
                    pass
        self._fail_questions()
        if left := len(self._waiting) + self._lost:
            log.warning("%d settlements of limits could not be written to Redis", left)
        await self._redis.aclose()

    async def _run(self) -> None:
        while True:
            if self.away:
                await asyncio.sleep(_RECONNECT_SECONDS)
                await self._connect()
            elif self._waiting:
                await self._next_batch()
            else:
                self._work.clear()
                await self._work.wait()

    async def _connect(self) -> None:
        """Read the clock, load the scripts, and send the settlements so far. Only then `away` ends."""
        try:
            await _within(self._introduce(), _CONNECT_SECONDS + ANSWER_SECONDS)
        except Exception as error:  # of any kind, because this task must go on
            await self._go_away(error)
            return
        while self._waiting:
            if not await self._next_batch():
                return
        self.away = False
        self._on_reconnect()

    async def _introduce(self) -> None:
        begun = microseconds()
        seconds, micros = await self._redis.time()
        self._set_offset(seconds * 1_000_000 + micros, begun)
        for script in (self._enter, self._settle):
            await self._redis.script_load(script.script)

    async def _next_batch(self) -> bool:
        """Whether Redis answered without errors."""
        batch = list(islice(self._waiting, _BATCH))
        try:
            replies = await self._send(batch)
        except Exception as error:
            await self._go_away(error)
            return False
        failed: list[Message] = []
        failure: Exception | None = None
        for message, reply in zip(batch, replies, strict=True):
            self._waiting.popleft()
            if isinstance(reply, Exception):
                failure = reply
                message.tries += is_its_own(reply)
                if message.tries < _MOST_TRIES:
                    failed.append(message)
                else:
                    log.error("Redis refuses a settlement of limits: %s", type(reply).__name__)
                    self._lost += 1
            elif message.answer is not None and not message.answer.done():
                message.answer.set_result(reply)
        self._waiting.extendleft(reversed(failed))
        if failure:
            await self._go_away(failure)
        return failure is None

    async def _send(self, messages: Sequence[Message]) -> list[Any]:
        begun = microseconds()
        replies = await _within(self._execute(messages), ANSWER_SECONDS)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # the scripts were flushed
            await _within(self._introduce(), ANSWER_SECONDS)
            again = await _within(self._execute([messages[i] for i in unknown]), ANSWER_SECONDS)
            for i, reply in zip(unknown, again, strict=True):
                replies[i] = reply
        elif isinstance(replies[-1], list):
            self._set_offset(replies[-1][1], begun)
        return replies

    async def _execute(self, messages: Sequence[Message]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        floor = next((message.number for message in self._waiting if message.number is not None), None)
        for message in messages:
            argument = json.dumps({**message.fill(self.offset), "floor": floor}, separators=(",", ":"))
            pipeline.evalsha(message.script.sha, len(message.keys), *message.keys, argument)
        replies = await pipeline.execute(raise_on_error=False)
        return [reply if isinstance(reply, list | int | Exception) else _NO_REDIS for reply in replies]

    def _set_offset(self, now: int, begun: int) -> None:
        self.offset = now - (begun + microseconds()) // 2

    async def _go_away(self, error: BaseException) -> None:
        self.away = True
        self._fail_questions()
        if not isinstance(error, (RedisError, OSError, TimeoutError)):
            log.error("unexpected %s", type(error).__name__, exc_info=error)
        if (now := time.monotonic()) >= self._next_warning:
            self._next_warning = now + _WARN_SECONDS
            # Redis's own answers contain no secrets; the library's texts about addresses might.
            why = f"{type(error).__name__}: {error}" if isinstance(error, ResponseError) else connection_cause(error)
            if isinstance(error, AuthenticationError):
                why = "AuthenticationError: wrong user or password"
            log.warning("Redis at %s does not serve limits (%s): deciding alone", self._where, why)
        with suppress(Exception):  # the connection is broken already
            await self._redis.connection_pool.disconnect(inuse_connections=True)

    def _fail_questions(self) -> None:
        for message in self._waiting:
            if message.answer is not None and not message.answer.done():
                message.answer.set_exception(Away())
        self._waiting = deque(message for message in self._waiting if message.answer is None)


async def _within(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of `work`. Raises TimeoutError, but not if the result arrived while the event loop was blocked."""
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            done, _ = await asyncio.wait({task}, timeout=_LATE_SECONDS)
    finally:
        task.cancel()
    if not done:
        raise TimeoutError
    return task.result()
