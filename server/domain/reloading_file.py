"""What is made of files that others edit, always of their latest good content.

Content is taken when two looks in a row have seen the same, so what is still being written is left alone; whether it
was written in place or renamed into its place makes no difference. Content that cannot be used changes nothing but
`problem`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
Contents = tuple[bytes, ...]

_LOOK_SECONDS = 0.5
_MAX_BYTES = 16 * 1024 * 1024


class BadFile(Exception):
    """A file cannot be used; the message names it and says why, and never quotes it."""


class ReloadingFile(Generic[T]):
    """`latest` is what `make` made of the files' contents. `make` runs on a thread and raises BadFile."""

    def __init__(self, what: str, paths: Sequence[Path], make: Callable[[Contents], T]) -> None:
        """Read the files now; raises BadFile. `what` is their name in the log and in metrics."""
        self.what = what
        self.problem = ""  # what an operator must mend; empty while the files are good
        self._paths = paths
        self._make = make
        self._glimpsed: Contents | str = _read(paths)
        self._judged = self._glimpsed
        self.latest: T = self._made(self._judged)

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Look for changes while the body runs; what changed is in use within 2 s."""
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self._look()
            except Exception:  # whatever it is, the next content must still be noticed
                log.exception("%s: the new files were not taken", self.what)
                self.problem = f"{self.what}: the new files were not taken; the server's log says why"

    async def _look(self) -> None:
        seen = await asyncio.to_thread(_read, self._paths)
        is_settled, self._glimpsed = seen == self._glimpsed, seen
        if not is_settled or seen == self._judged:
            return
        self._judged = seen
        try:
            self.latest = await asyncio.to_thread(self._made, seen)
        except BadFile as error:
            self.problem = str(error)
            log.error("%s stay as they were: %s", self.what, error)
            return
        self.problem = ""
        log.info("%s were read anew", self.what)

    def _made(self, contents: Contents | str) -> T:
        if isinstance(contents, str):
            raise BadFile(contents)
        return self._make(contents)


def _read(paths: Sequence[Path]) -> Contents | str:
    """The contents, or why there are none."""
    contents = []
    for path in paths:
        try:
            with path.open("rb") as file:
                contents.append(file.read(_MAX_BYTES + 1))
        except OSError as error:
            return f"{path}: {(error.strerror or str(error)).lower()}"
        if len(contents[-1]) > _MAX_BYTES:
            return f"{path}: larger than {_MAX_BYTES} bytes"
    return tuple(contents)
