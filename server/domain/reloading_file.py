"""ReloadingFile: an object made from files that other programs edit, always from their latest valid content.

New content is used once two reads in a row are equal, so that a file being written is not read half. Writing in place
and renaming a file into place both work. Invalid content only sets `problem`; the object stays as it is.
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

_POLL_SECONDS = 0.5
_MAX_BYTES = 16 * 1024 * 1024


class BadFile(Exception):
    """A file cannot be used; the message names it and says why, and never quotes it."""


class ReloadingFile(Generic[T]):
    """`latest` is what `make` returned for the files' contents. `make` runs on a thread and raises BadFile."""

    def __init__(self, what: str, paths: Sequence[Path], make: Callable[[Contents], T]) -> None:
        """Read the files now; raises BadFile. `what` names them in the log and in metrics."""
        self.what = what
        self.problem = ""  # what an operator must repair; empty while the files are valid
        self._paths = paths
        self._make = make
        self._seen: Contents | str = _read(paths)
        self._used = self._seen
        self.latest: T = self._made(self._used)

    @contextlib.asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """Poll for changes while the body runs; new content is used within 2 s."""
        task = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await self._reload_if_changed()
            except Exception:  # of any kind, because polling must go on
                log.exception("%s: reloading failed", self.what)
                self.problem = f"{self.what}: reloading failed; the server's log says why"

    async def _reload_if_changed(self) -> None:
        before, self._seen = self._seen, await asyncio.to_thread(_read, self._paths)
        if self._seen != before or self._seen == self._used:
            return
        self._used = self._seen
        try:
            self.latest = await asyncio.to_thread(self._made, self._used)
        except BadFile as error:
            self.problem = str(error)
            log.error("invalid %s are ignored, the current ones stay: %s", self.what, error)
            return
        self.problem = ""
        log.info("%s reloaded", self.what)

    def _made(self, contents: Contents | str) -> T:
        if isinstance(contents, str):
            raise BadFile(contents)
        return self._make(contents)


def _read(paths: Sequence[Path]) -> Contents | str:
    """The contents, or why they cannot be read."""
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
