"""Waiting for what happens in other processes or on other connections."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Return when `condition` is true. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what it waits for sets no event
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """True while the process runs; one that has ended and was not waited for is not alive."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
