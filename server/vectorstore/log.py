"""The log of a collection: the writes since its segment, each a record with checksums (records.py).

A record is acknowledged after it was synced. An incomplete record at the end was never acknowledged. A damaged record
is left out, and so is one whose checksums are right and whose content cannot be read. What is left out is reported,
and its bytes are kept (damage.py).
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from server.models.artefact import sync_folder
from server.vectorstore.damage import Damaged, damage_as_error, keep_aside, keep_bytes, read_regular
from server.vectorstore.layout import log_path
from server.vectorstore.records import HEAD, Write, encode, lost_at, next_whole, record_at, write_of

BELIEVED = 2**32  # how far a generation may be beyond the one before it; further is damage


@dataclass(frozen=True, slots=True)
class Bad:
    """Bytes `start` to `end` of a log that are left out."""

    path: Path
    start: int
    end: int
    why: str


@dataclass(frozen=True, slots=True)
class LogPart:
    """Writes read from a log. `end` is the byte after the last whole record, `torn` the number of bytes behind it.

    `lost`: None if these bytes look like an incomplete record; else they are a damaged one, of this generation, or 0 if
    its header is damaged. `last`: the newest generation of a whole record, readable or not. `missing`: bytes that were
    there before. `alien`: why there is no log file at its path but something else.
    """

    writes: tuple[Write, ...]
    end: int
    torn: int
    bad: tuple[Bad, ...] = ()
    lost: int | None = None
    last: int = 0
    missing: int = 0
    alien: str = ""


class Log:
    """Reads on, and appends, in the logs of a collection from `generation` on. A fold begins a new log file.

    Vectors have so many `dimensions`.
    `last`: the newest generation that was read, of writes that cannot be read, too.
    """

    def __init__(self, folder: Path, generation: int, dimensions: int) -> None:
        self._folder = folder
        self._dimensions = dimensions
        self.last = generation
        self.path = log_path(folder, generation)
        self.end = 0
        self.is_whole = True  # what was read is still there

    def read_new(self) -> tuple[LogPart, list[str]]:
        """The writes since the last call, and what is wrong. `end`, `torn` and `missing` are of the newest file."""
        writes: list[Write] = []
        bad: list[Bad] = []
        faults: list[str] = []
        while True:
            part = read_log(self.path, self.end, self._dimensions, self.last + BELIEVED)
            bad += part.bad
            faults += (each.why for each in part.bad)
            faults += [part.alien] if part.alien else []
            served = self.last
            for write in part.writes:
                if write.generation > served + 1:
                    faults.append(f"writes {served + 1} to {write.generation - 1} are lost")
                served = max(served, write.generation)
            writes += part.writes
            self.last, self.end = max(served, part.last), part.end
            self.is_whole = self.is_whole and not part.missing
            following = log_path(self._folder, self.last)
            if following == self.path or not following.exists():
                return replace(part, writes=tuple(writes), bad=tuple(bad)), faults
            self.path, self.end = following, 0

    def append(self, write: Write) -> None:
        """Write a record at `end`; return when it is synced. Everything must be read, and what is torn cut off.

        After an error the file ends at `end` again: a full disk leaves no part of a record.
        """
        is_new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, self.end)
            record = memoryview(encode(write))
            try:
                position = self.end
                while record:
                    written = os.pwrite(descriptor, record, position)
                    position, record = position + written, record[written:]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, self.end)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(self._folder)
        self.end, self.last = position, write.generation

    def begin_new_file(self) -> None:
        """Make later writes go into a log file of their own, so that the present one belongs to a segment alone."""
        with log_path(self._folder, self.last).open("ab") as file:
            os.fsync(file.fileno())
        sync_folder(self._folder)

    def cut(self, part: LogPart) -> str:
        """Cut off the `torn` bytes that `read_new` found, or what is `alien`, and keep it; returns what to say of it.

        Returns "" if another process has changed it.
        """
        now = read_log(self.path, part.end, self._dimensions, self.last + BELIEVED)
        if part.alien and now.alien:
            return f"{part.alien}; it is kept in {keep_aside(self.path)}"
        if not part.torn or now.torn != part.torn:
            return ""
        copy = keep_bytes(self.path, part.end, read_regular(self.path, part.end), torn=part.lost is None)
        os.truncate(self.path, part.end)
        kept = f"{part.torn} bytes at the end of {self.path.name} were cut off and are kept in {copy}"
        if part.lost is not None:
            return f"{kept}: write {part.lost or self.last + 1} is damaged"
        return f"{kept}: an incomplete write that was not acknowledged, unless the file was damaged"


def keep_bad(each: Bad) -> str:
    """Keep a copy of bytes that are left out; returns its name."""
    return keep_bytes(each.path, each.start, read_regular(each.path)[each.start : each.end])


def read_log(path: Path, start: int = 0, dimensions: int | None = None, most: int = 2**63) -> LogPart:
    """The writes of a log file from byte `start` on, with vectors of `dimensions`. A missing file has none.

    A record with a generation over `most` is damaged.
    """
    try:
        with damage_as_error():
            raw = read_regular(path, start)
    except Damaged as error:
        if os.path.lexists(path):
            return LogPart((), start, 0, missing=start, alien=str(error))
        return LogPart((), start, 0, missing=start)
    writes: list[Write] = []
    bad: list[Bad] = []
    position = last = 0
    while position < len(raw):
        if (record := record_at(raw, position, path, most)) is None:
            following = next_whole(raw, position + 1, path, most)
            if following is None:
                break
            why = f"{path.name} is damaged from byte {start + position} to {start + following}"
            bad.append(Bad(path, start + position, start + following, why))
            position = following
            continue
        generation, end = record
        try:
            with damage_as_error():
                writes.append(write_of(generation, raw[position + HEAD : end], dimensions))
        except Damaged as error:
            why = f"write {generation} in {path.name} cannot be read: {error}"
            bad.append(Bad(path, start + position, start + end, why))
        position, last = end, max(last, generation)
    torn = len(raw) - position
    missing = 0 if raw or not start else max(0, start - path.stat().st_size)
    return LogPart(tuple(writes), start + position, torn, tuple(bad), lost_at(raw, position, most), last, missing)
