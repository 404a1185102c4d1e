"""ReloadingFile: an object made from files that other programs edit, always from their latest valid content.

New content is used once two reads in a row are equal, so that a file being written is not read half. Writing in place
and renaming a file into place both work. Invalid content only sets `problem`; the object stays as it is.
"""

import contextlib
import logging
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from server.domain.supervision import restarts

log = logging.getLogger(__name__)
T = TypeVar("T")
Contents = tuple[bytes, ...]

_POLL_SECONDS = 0.5
_END_SECONDS = 1.0
_MAX_BYTES = 16 * 1024 * 1024


class BadFile(Exception):
    """A file cannot be used; the message names it and says why, and never quotes it."""


class NotYet(BadFile):
    """A file cannot be used now, but later without a change: it is tried again."""


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

    @property
    def warnings(self) -> Sequence[str]:
        """What an operator should repair, as GetServerInfo shows it."""
        return [self.problem] if self.problem else []

    @contextlib.asynccontextmanager
    async def reloading(self) -> AsyncIterator[None]:
        """Poll for changes while the body runs; new content is used within 2 s, or once `make` returns.

        A thread of its own does it, because a file system may hang. The end waits for it for a second at most.
        """
        ending = threading.Event()
        thread = threading.Thread(target=self._poll, args=[ending], name=f"reload-{self.what}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join(_END_SECONDS)

    def _poll(self, ending: threading.Event) -> None:
        while not ending.wait(_POLL_SECONDS):
            try:
                self._reload_if_changed()
            except Exception:  # of any kind, because polling must go on
                log.exception("%s: reloading failed", self.what)
                restarts[f"reload {self.what}"] += 1
                self.problem = f"{self.what}: reloading failed; the server's log says why"

    def _reload_if_changed(self) -> None:
        before, self._seen = self._seen, _read(self._paths)
        if self._seen != before or self._seen == self._used:
            return
        self._used = self._seen
        try:
            self.latest = self._made(self._used)
        except BadFile as error:
            if str(error) != self.problem:
                log.error("invalid %s are ignored, the current ones stay: %s", self.what, error)
            self.problem = str(error)
            if isinstance(error, NotYet):
                self.check_again()
            return
        self.problem = ""
        log.info("%s reloaded", self.what)

    def check_again(self) -> None:
        """Make the object again at the next poll, even if the files have not changed."""
        self._used = ""  # differs from every content

    def _made(self, contents: Contents | str) -> T:
        if isinstance(contents, str):
            raise BadFile(contents)
        return self._make(contents)


def _read(paths: Sequence[Path]) -> Contents | str:
    """The contents, or why they cannot be read."""
    contents = []
    for path in paths:
        try:
            contents.append(read_file(path))
        except OSError as error:
            return f"{path}: {(error.strerror or str(error)).lower()}"
        except BadFile as error:
            return f"{path}: {error}"
    return tuple(contents)


def read_file(path: Path) -> bytes:
    """The content of a regular file. Raises OSError, or BadFile without the path."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a FIFO would wait for a writer
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadFile("not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(_MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MAX_BYTES:
        raise BadFile(f"larger than {_MAX_BYTES} bytes")
    return content
