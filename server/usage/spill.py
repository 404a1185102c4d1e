"""Settlements that wait for the database, in a file: they survive the end of the process.

A process has a file of its own and holds its lock; at the start it takes over the files that no process holds. A line
is a check sum and a change in JSON. Writing a change twice is harmless, so a file is removed once all is in the
database.
"""

import errno
import fcntl
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from server.usage.changes import Change
from server.usage.tables import entry_of, row_of

log = logging.getLogger(__name__)


class Spill:
    """The files in `folder`; `instance` names the process."""

    def __init__(self, folder: Path, instance: str) -> None:
        self._path = folder / f"ledger-waiting-{instance}.jsonl"
        self._instance = instance
        self._files: dict[Path, IO[bytes]] = {}  # locked
        self._damaged: set[Path] = set()

    def take_over(self) -> list[Change]:
        """The changes of processes that have ended."""
        found: list[Change] = []
        for path in sorted(self._path.parent.glob("ledger-waiting-*.jsonl")):
            try:
                if _lock(file := path.open("rb")):
                    self._files[path] = file
                    found += self._changes_of(path, file)
                else:
                    file.close()
            except OSError as error:
                log.error("%s cannot be read: %s", path, error.strerror)
        if found:
            log.warning(
                "%d settlements that an earlier process could not write to the ledger are written now", len(found)
            )
        return found

    def add(self, changes: Sequence[Change]) -> None:
        """Append changes, and sync. Raises OSError."""
        file = self._files.get(self._path)
        if file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            file = os.fdopen(descriptor, "ab", buffering=0)
            _lock(file)
            self._files[self._path] = file
        size = os.fstat(file.fileno()).st_size
        block = b"".join(_line_of(change, self._instance) for change in changes)
        try:
            if file.write(block) != len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
        for change in changes:
            change.is_spilled = True

    def clear(self) -> None:
        """Remove the files: what they have is in the database. A damaged one is kept under another name."""
        for path, file in self._files.items():
            try:
                if path in self._damaged:
                    path.rename(path.with_suffix(".damaged"))
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:  # the next server writes its changes once more
                log.error("%s cannot be removed: %s", path, error.strerror)
            file.close()
        self._files.clear()

    def close(self) -> None:
        """Leave the files for the next process."""
        for file in self._files.values():
            file.close()

    @property
    def is_empty(self) -> bool:
        return not self._files

    def _changes_of(self, path: Path, file: IO[bytes]) -> Iterator[Change]:
        for line in file.read().split(b"\n"):
            try:
                if line:
                    yield _change_of(line)
            except (ValueError, LookupError, TypeError) as error:
                if path not in self._damaged:
                    log.error("%s has a line that cannot be read (%s); it is kept", path, type(error).__name__)
                self._damaged.add(path)


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _line_of(change: Change, instance: str) -> bytes:
    body = json.dumps({"kind": change.kind, **row_of(change.entry, instance)}).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _change_of(line: bytes) -> Change:
    """Raises ValueError, LookupError and TypeError."""
    number, _, body = line.partition(b" ")
    if int(number, 16) != zlib.crc32(body):
        raise ValueError("its check sum is wrong")
    row = json.loads(body)
    if row["kind"] not in ("settle", "void"):
        raise ValueError("its kind is unknown")
    return Change(row["kind"], entry_of(row), is_spilled=True)
