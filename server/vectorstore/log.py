"""The log of a collection: writes that are not in a generation of files yet, each a record with checksums.

    magic  length  number  CRC-32 of the body  CRC-32 of the header before it  body

A record is acknowledged after it was synced. What a killed process leaves at the end is no whole record, and is cut.
A damaged record with a whole one after it was acknowledged: it is left out, and reported. A body is the length of its
JSON part, that part, passages (int32 [n, 3]) and vectors (float32 [n, dimensions]): replaying embeds nothing again.
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

from server.vectorstore.segment import DocumentRecord

_MAGIC = b"QLg1"
_HEADER = struct.Struct("<4sIQI")
_CRC = struct.Struct("<I")
_HEAD = _HEADER.size + _CRC.size


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """What one write does: it removes documents by id, then adds documents, also replacing those of the same ids.

    passages: int32 [n, 3], index into `documents`, first code point, the one after the last; ordered by document.
    vectors: float32 [n, dimensions], rows of length 1.
    """

    number: int
    time: datetime
    removed: tuple[str, ...]
    documents: tuple[DocumentRecord, ...]
    passages: NDArray[np.int32]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LogPart:
    """Writes read from a log. `end` is the byte after the last whole one, `torn` what lies behind it."""

    writes: tuple[Write, ...]
    end: int
    torn: int
    faults: tuple[str, ...]


def append(path: Path, end: int, write: Write) -> int:
    """Put a record at `end`, cutting what lies behind; return the new end when it is on disk.

    After an error the file is cut to `end` again, so a full disk leaves no part of a record.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(descriptor, end)
        record = memoryview(_encode(write))
        try:
            position = end
            while record:
                written = os.pwrite(descriptor, record, position)
                position, record = position + written, record[written:]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
        return position
    finally:
        os.close(descriptor)


def read_log(path: Path, start: int = 0) -> LogPart:
    """The writes of a log from byte `start` on. A log that is not there has none."""
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
    head = json.dumps(
        {
            "time": write.time.isoformat(),
            "removed": write.removed,
            "documents": [asdict(document) for document in write.documents],
            "shape": write.vectors.shape,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()
    body = b"".join((_CRC.pack(len(head)), head, write.passages.tobytes(), write.vectors.tobytes()))
    header = _HEADER.pack(_MAGIC, len(body), write.number, zlib.crc32(body))
    return header + _CRC.pack(zlib.crc32(header)) + body


def _decode(raw: bytes, position: int) -> tuple[Write, int] | None:
    """The record at `position` and where it ends, None if there is no whole one."""
    body_start = position + _HEAD
    header = raw[position : position + _HEADER.size]
    if body_start > len(raw) or _CRC.pack(zlib.crc32(header)) != raw[position + _HEADER.size : body_start]:
        return None
    magic, length, number, checksum = _HEADER.unpack(header)
    body = raw[body_start : body_start + length]
    if magic != _MAGIC or len(body) < length or zlib.crc32(body) != checksum:
        return None
    (split,) = _CRC.unpack_from(body)
    head = json.loads(body[_CRC.size : _CRC.size + split])
    rows, dimensions = head["shape"]
    passages = np.frombuffer(body, np.int32, rows * 3, _CRC.size + split)
    vectors = np.frombuffer(body, np.float32, rows * dimensions, _CRC.size + split + passages.nbytes)
    write = Write(
        number,
        datetime.fromisoformat(head["time"]).astimezone(UTC),
        tuple(head["removed"]),
        tuple(DocumentRecord(**document) for document in head["documents"]),
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
