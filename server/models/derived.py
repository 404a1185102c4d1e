"""What is made of models, for instance the collections that an embedder searches."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from server.models.handle import Handle, State

log = logging.getLogger(__name__)
T = TypeVar("T")
_FIRST_RETRY_SECONDS, _LONGEST_RETRY_SECONDS = 1.0, 60.0
_ABSENT = (State.FAILED, State.UNLOADED)  # unloaded with a message: it does not fit


async def keep_derived(
    handle: Handle[T],
    make: Callable[..., Awaitable[T]],
    depends_on: Sequence[Handle[Any]],
    next_change: Callable[[], asyncio.Event],
) -> None:
    """Fill `handle` as soon as all of `depends_on` are loaded, and again when one of them is replaced.

    `make` gets their engines. After a failure it is called again when one of them changes, and after 1 s, 2 s and so on
    up to a minute: what it needs of the disk may be repaired. What it makes is closed, if it has a coroutine close(),
    before it is made again and at the end. `next_change` returns an event that the next change of any handle sets. Runs
    until it is cancelled.
    """
    made_of: list[object] = []
    tried: list[int] = []
    delay = _FIRST_RETRY_SECONDS
    try:
        while True:
            change = next_change()
            engines = [each.loaded for each in depends_on]
            revisions = [each.revision for each in depends_on]
            # A model may be evicted and loaded again without being another one.
            identities = [
                each.description.identity if each.spec and each.description else each.loaded for each in depends_on
            ]
            if any(engine is None for engine in engines):
                absent = [each.message for each in depends_on if each.state in _ABSENT and each.message]
                if absent and handle.loaded is None and handle.message != absent[0]:
                    handle.move(State.FAILED, absent[0])
            elif identities != made_of and revisions != tried:
                tried, made_of = revisions, []
                names = ", ".join(f'"{each.name}"' for each in depends_on)
                handle.move(State.LOADING, f'"{handle.name}" is being prepared with {names}')
                await _close(handle)
                await handle.load(partial(make, *engines))
                made_of = identities if handle.loaded is not None else []
                if made_of:
                    delay = _FIRST_RETRY_SECONDS
                continue  # something may have changed meanwhile
            del engines, identities  # keep no engine alive while waiting
            retry = handle.failed and bool(tried) and not made_of
            try:
                await asyncio.wait_for(change.wait(), delay if retry else None)
            except TimeoutError:
                tried, delay = [], min(2 * delay, _LONGEST_RETRY_SECONDS)
    finally:
        await _close(handle)


async def _close(handle: Handle[Any]) -> None:
    engine, handle.resident = handle.loaded, None
    if close := getattr(engine, "close", None):
        try:
            await close()
        except Exception:  # what is made next must not fail with it
            log.exception("%s could not be closed", handle.name)
