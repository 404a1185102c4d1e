"""What is made of models, for instance the collections that an embedder searches."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from server.models.handle import Handle, State

T = TypeVar("T")
_ABSENT = (State.FAILED, State.UNLOADED)  # unloaded with a message: it does not fit


async def keep_derived(
    handle: Handle[T],
    make: Callable[..., Awaitable[T]],
    depends_on: Sequence[Handle[Any]],
    next_change: Callable[[], asyncio.Event],
) -> None:
    """Fill `handle` as soon as all of `depends_on` are loaded, and again when one of them is replaced.

    `make` gets their engines. After a failure it is called again when one of them changes. What it makes is closed, if
    it has a coroutine close(), before it is made again and at the end. `next_change` returns an event that the next
    change of any handle sets. Runs until it is cancelled.
    """
    made_of: list[object] = []
    tried: list[int] = []
    try:
        while True:
            change = next_change()
            engines = [each.loaded for each in depends_on]
            revisions = [each.revision for each in depends_on]
            identities = [each.description.identity if each.description else each.loaded for each in depends_on]
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
                continue  # something may have changed meanwhile
            del engines  # keep no engine alive while waiting
            await change.wait()
    finally:
        await _close(handle)


async def _close(handle: Handle[Any]) -> None:
    engine, handle.resident = handle.loaded, None
    if close := getattr(engine, "close", None):
        await close()
