"""The log of a collection: the writes since its segment, each a record with checksums.

    magic  length  generation  CRC-32 of the body  CRC-32 of the header before it  body

A record is acknowledged after it was synced. An incomplete record at the end was never acknowledged, and is cut off.
A damaged record before a whole one was acknowledged: it is left out, and reported. A body is the length of its JSON
part, that part, passages (int32 [n, 3]) and vectors (float32 [n, dimensions]), so that replaying embeds nothing.
"""

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.domain.rag import Document
from server.models.artefact import sync_folder
from server.vectorstore.layout import log_path

_MAGIC = b"QLg1"
_HEADER = struct.Struct("<4sIQI")
_CRC = struct.Struct("<I")
_HEAD = _HEADER.size + _CRC.size


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """Removes documents by id, then adds documents, which replace those with the same ids. Makes `generation`.

    passages: int32 [n, 3], row in `documents`, first code point, the one after the last; ordered by document.
    vectors: float32 [n, dimensions], rows of length 1.
    """

    generation: int
    time: datetime
    removed: tuple[str, ...]
    documents: tuple[Document, ...]
    passages: NDArray[np.int32]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LogPart:
    """Writes read from a log. `end` is the byte after the last whole record, `torn` the number of bytes behind it."""

    writes: tuple[Write, ...]
    end: int
    torn: int
    faults: tuple[str, ...]


class Log:
    """Reads on, and appends, in the logs of a collection from `generation` on. A fold begins a new log file."""

    def __init__(self, folder: Path, generation: int) -> None:
        self._folder = folder
        self._last = generation  # of the writes that were read
        self.path = log_path(folder, generation)
        self.end = 0

    def read_new(self) -> LogPart:
        """The writes since the last call. `end` and `torn` are of the newest file."""
        writes: list[Write] = []
        faults: list[str] = []
        while True:
            part = read_log(self.path, self.end)
            faults += part.faults
            for write in part.writes:
                if write.generation > self._last + 1:
                    faults.append(f"writes {self._last + 1} to {write.generation - 1} are lost")
                self._last = max(self._last, write.generation)
            writes += part.writes
            self.end = part.end
            following = log_path(self._folder, self._last)
            if following == self.path or not following.exists():
                return LogPart(tuple(writes), part.end, part.torn, tuple(faults))
            self.path, self.end = following, 0

    def append(self, write: Write) -> None:
        """Write a record at `end`, in place of what lies behind; return when it is synced. Everything must be read.

        After an error the file ends at `end` again: a full disk leaves no part of a record.
        """
        is_new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.ftruncate(descriptor, self.end)
            record = memoryview(_encode(write))
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
        self.end, self._last = position, write.generation

    def begin_new_file(self) -> None:
        """Make later writes go into a log file of their own, so that the present one belongs to a segment alone."""
        with log_path(self._folder, self._last).open("ab") as file:
            os.fsync(file.fileno())
        sync_folder(self._folder)

    def cut_torn(self, part: LogPart) -> bool:
        """Cut off the incomplete record that `read_new` found; false if another process has changed it."""
        if read_log(self.path, part.end).torn != part.torn:
            return False
        os.truncate(self.path, part.end)
        return True


def read_log(path: Path, start: int = 0) -> LogPart:
    """The writes of a log file from byte `start` on. A missing file has none."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            raw = file.read()
    except FileNotFoundError:
        raw = b""
    writes: list[Write] = []
    faults: list[str] = []
    position = 0
    while position < len(raw):
        if found := _decode(raw, position):
            write, position = found
            writes.append(write)
            continue
        following = _next_whole(raw, position + 1)
        if following is None:
            break
        faults.append(f"{path.name} is damaged from byte {start + position} to {start + following}")
        position = following
    return LogPart(tuple(writes), start + position, len(raw) - position, tuple(faults))


def _encode(write: Write) -> bytes:
    described = {
        "time": write.time.isoformat(),
        "removed": write.removed,
        "documents": [asdict(document) for document in write.documents],
        "shape": write.vectors.shape,
    }
    head = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    body = b"".join((_CRC.pack(len(head)), head, write.passages.tobytes(), write.vectors.tobytes()))
    header = _HEADER.pack(_MAGIC, len(body), write.generation, zlib.crc32(body))
    return header + _CRC.pack(zlib.crc32(header)) + body


def _decode(raw: bytes, position: int) -> tuple[Write, int] | None:
    """The record at `position` and where it ends, None if there is no whole one."""
    body_start = position + _HEAD
    header = raw[position : position + _HEADER.size]
    if body_start > len(raw) or _CRC.pack(zlib.crc32(header)) != raw[position + _HEADER.size : body_start]:
        return None
    magic, length, generation, checksum = _HEADER.unpack(header)
    body = raw[body_start : body_start + length]
    if magic != _MAGIC or len(body) < length or zlib.crc32(body) != checksum:
        return None
    (split,) = _CRC.unpack_from(body)
    head = json.loads(body[_CRC.size : _CRC.size + split])
    rows, dimensions = head["shape"]
    passages = np.frombuffer(body, np.int32, rows * 3, _CRC.size + split)
    vectors = np.frombuffer(body, np.float32, rows * dimensions, _CRC.size + split + passages.nbytes)
    write = Write(
        generation,
        datetime.fromisoformat(head["time"]).astimezone(UTC),
        tuple(head["removed"]),
        tuple(Document(**document) for document in head["documents"]),
        passages.reshape(rows, 3),
        vectors.reshape(rows, dimensions),
    )
    return write, body_start + length


def _next_whole(raw: bytes, position: int) -> int | None:
    while (position := raw.find(_MAGIC, position)) >= 0:
        if _decode(raw, position):
            return position
        position += 1
    return None
