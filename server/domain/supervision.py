"""Background tasks that survive their own defects: an exception is logged and counted, and the task starts again."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import Context

log = logging.getLogger(__name__)

restarts: Counter[str] = Counter()  # by name of the task, since the process started
_MIN_DELAY, _MAX_DELAY = 0.5, 30.0  # seconds between the end of a run and the start of the next


def supervised(name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """A task that runs `run` until it returns or the task is cancelled. After an exception it runs it again.

    The delay before a restart doubles with each exception, and starts anew after a run of 30 s. The task belongs to no
    call, even if a call starts it.
    """
    return asyncio.create_task(_supervise(name, run), name=name, context=Context())


async def _supervise(name: str, run: Callable[[], Awaitable[None]]) -> None:
    delay = _MIN_DELAY
    loop = asyncio.get_running_loop()
    while True:
        begun = loop.time()
        try:
            return await run()
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            log.exception("background task %s was cancelled from within", name)  # for instance by its executor
        except Exception:
            log.exception("background task %s failed", name)
        restarts[name] += 1
        if loop.time() - begun > _MAX_DELAY:
            delay = _MIN_DELAY
        await asyncio.sleep(delay)
        delay = min(2 * delay, _MAX_DELAY)
