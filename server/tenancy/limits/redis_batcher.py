"""One connection to Redis that never keeps anybody waiting. Whatever has come up goes in one batch, settlements first.

While Redis is away, questions fail at once and settlements are kept; somebody else than the callers tries again every
second. A settlement is sent until it is acknowledged, in order; the script knows those that it has seen.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from server.tenancy.limits.scripts import ENTER, SETTLE, Fill, Message

log = logging.getLogger(__name__)
ANSWER_SECONDS = 0.25  # how long a batch may take
_CONNECT_SECONDS = 1.0  # no call waits for that
_LATE_SECONDS = 0.1  # for what had come while the event loop was held up
_AGAIN_SECONDS = 1.0
_CLOSE_SECONDS = 2.0
_WARN_SECONDS = 60.0
_BATCH = 16  # settlements, and as many questions
_MOST_QUESTIONS = 8192
_MOST_SETTLEMENTS = 65_536
_MOST_TRIES = 3  # of a settlement that is answered with an error

T = TypeVar("T")


class Away(Exception):
    """Redis does not answer. What was asked may have been done."""


def microseconds() -> int:
    """The clock of this process, which never jumps."""
    return time.monotonic_ns() // 1000


class RedisBatcher:
    """`offset` is what Redis's clock is ahead of microseconds()."""

    def __init__(self, url: str, on_back: Callable[[], None]) -> None:
        self._redis = Redis.from_url(
            url,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=None,  # a batch has its own
            retry=Retry(NoBackoff(), 0),
        )
        where = self._redis.connection_pool.connection_kwargs
        self._where = where.get("path") or f"{where.get('host')}:{where.get('port')}"  # without the password
        self._on_back = on_back
        self._questions: deque[Message] = deque()
        self._settlements: deque[Message] = deque()
        self._work = asyncio.Event()
        self._settled = asyncio.Event()
        self._next_warning = 0.0
        self._task: asyncio.Task[None] | None = None
        self.away = True
        self.offset = time.time_ns() // 1000 - microseconds()
        self.lost = 0  # settlements that were given up

    async def start(self) -> None:
        """Connect; if that fails, go on trying in the background."""
        await self._connect()
        self._task = asyncio.create_task(self._run())

    async def ask(self, keys: Sequence[str], fill: Fill) -> list[Any]:
        """The answer of ENTER. Raises Away in less than a second."""
        if self.away or len(self._questions) >= _MOST_QUESTIONS:
            raise Away
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._questions.append(Message(ENTER, keys, fill, answer=answer))
        self._work.set()
        return await answer

    def tell(self, keys: Sequence[str], fill: Fill) -> None:
        """Run SETTLE as soon as Redis is there; the oldest is given up if there are too many."""
        if len(self._settlements) >= _MOST_SETTLEMENTS:
            self._settlements.popleft()
            self.lost += 1
        self._settlements.append(Message(SETTLE, keys, fill))
        self._work.set()

    async def close(self) -> None:
        """Send what was settled, for at most two seconds."""
        if self._task is None:
            return
        if self._settlements:
            self._settled.clear()
            settled = asyncio.create_task(self._settled.wait())
            await asyncio.wait({settled}, timeout=_CLOSE_SECONDS)
            settled.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._give_up()
        if left := len(self._settlements) + self.lost:
            log.warning("%d settlements of limits could not be written to Redis", left)
        await self._redis.aclose()

    # ------------------------------------------------------------ the task

    async def _run(self) -> None:
        while True:
            if self.away:
                await asyncio.sleep(_AGAIN_SECONDS)
                await self._connect()
            else:
                await self._serve()

    async def _serve(self) -> None:
        """Send what has come up; wait if nothing has."""
        if self._settlements or self._questions:
            await self._next_batch()
            return
        self._settled.set()
        self._work.clear()
        await self._work.wait()

    async def _connect(self) -> None:
        """Learn the time, bring the scripts, send what was settled meanwhile; then Redis is back."""
        try:
            await _within(self._introduce(), _CONNECT_SECONDS + ANSWER_SECONDS)
        except Exception as error:  # this task must live
            await self._go_away(error)
            return
        backlog = len(self._settlements)
        while backlog > 0:
            if not await self._next_batch():
                return
            backlog -= _BATCH
        self.away = False
        self._on_back()

    async def _introduce(self) -> None:
        begun = microseconds()
        seconds, micros = await self._redis.time()
        self._see_time(seconds * 1_000_000 + micros, begun)
        for script in (ENTER, SETTLE):
            await self._redis.script_load(script.source)

    async def _next_batch(self) -> bool:
        """Whether it was answered, and not with an error."""
        settlements = [self._settlements[i] for i in range(min(_BATCH, len(self._settlements)))]
        questions: list[Message] = []
        while self._questions and len(questions) < _BATCH:
            question = self._questions.popleft()
            if question.answer and not question.answer.done():  # its caller is still there
                questions.append(question)
        try:
            replies = await self._send([*settlements, *questions])
        except BaseException as error:
            self._questions.extendleft(reversed(questions))  # nobody may wait for what was forgotten
            if not isinstance(error, Exception):
                raise
            await self._go_away(error)
            return False
        failure = self._acknowledge(settlements, replies)
        for question, reply in zip(questions, replies[len(settlements) :], strict=True):
            if isinstance(reply, Exception):
                failure = reply
                self._questions.append(question)
            elif question.answer and not question.answer.done():
                question.answer.set_result(reply)
        if failure:
            await self._go_away(failure)
        return failure is None

    def _acknowledge(self, settlements: Sequence[Message], replies: Sequence[Any]) -> Exception | None:
        """Forget settlements up to the first that failed; returns its failure."""
        for settlement, reply in zip(settlements, replies, strict=False):
            if isinstance(reply, Exception):
                settlement.tries += 1
                if settlement.tries < _MOST_TRIES:
                    return reply
                log.error("Redis refuses a settlement of limits: %s", type(reply).__name__)
                self.lost += 1
            # Others may have been given up for new ones meanwhile.
            if self._settlements and self._settlements[0] is settlement:
                self._settlements.popleft()
        return None

    async def _send(self, messages: Sequence[Message]) -> list[Any]:
        if not messages:
            return []
        begun = microseconds()
        replies = await _within(self._execute(messages), ANSWER_SECONDS)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # somebody has flushed the scripts
            await _within(self._introduce(), ANSWER_SECONDS)
            again = await _within(self._execute([messages[i] for i in unknown]), ANSWER_SECONDS)
            for i, reply in zip(unknown, again, strict=True):
                replies[i] = reply
        elif isinstance(replies[-1], list):
            self._see_time(replies[-1][1], begun)
        return replies

    async def _execute(self, messages: Sequence[Message]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for message in messages:
            argument = json.dumps(message.fill(self.offset), separators=(",", ":"))
            pipeline.evalsha(message.script.digest, len(message.keys), *message.keys, argument)
        return await pipeline.execute(raise_on_error=False)

    def _see_time(self, now: int, begun: int) -> None:
        self.offset = now - (begun + microseconds()) // 2

    async def _go_away(self, error: BaseException) -> None:
        self.away = True
        self._give_up()
        if not isinstance(error, (RedisError, OSError, TimeoutError)):
            log.error("unexpected %s", type(error).__name__, exc_info=error)
        if (now := time.monotonic()) >= self._next_warning:
            self._next_warning = now + _WARN_SECONDS
            # What a Redis answers holds no secrets; what a library says of an address might.
            why = f"{type(error).__name__}: {error}" if isinstance(error, ResponseError) else type(error).__name__
            log.warning("Redis at %s does not serve limits (%s): deciding alone", self._where, why)
        with suppress(Exception):  # it is gone, however it goes
            await self._redis.connection_pool.disconnect(inuse_connections=True)

    def _give_up(self) -> None:
        while self._questions:
            answer = self._questions.popleft().answer
            if answer and not answer.done():
                answer.set_exception(Away())


async def _within(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of `work`. Raises TimeoutError, but not for an answer that lay there while the loop was held up."""
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
