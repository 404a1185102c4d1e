"""The records of a log, as bytes. log.py says what they are for.

    magic  length  generation  CRC-32 of the body  CRC-32 of the header before it  body

A body is the length of its JSON part, that part, passages (int32 [n, 3]) and vectors (float32 [n, dimensions]), so that
replaying embeds nothing. Unknown fields of the JSON part are ignored; the last character of the magic is the version.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.domain.errors import CollectionTooNew
from server.domain.rag import Document
from server.vectorstore.documents import document_of, fields_of

_MAGIC = b"QLg1"
_HEADER = struct.Struct("<4sIQI")
_CRC = struct.Struct("<I")
HEAD = _HEADER.size + _CRC.size


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


def encode(write: Write) -> bytes:
    described = {
        "time": write.time.isoformat(),
        "removed": write.removed,
        "documents": list(map(fields_of, write.documents)),
        "shape": write.vectors.shape,
    }
    head = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    body = b"".join((_CRC.pack(len(head)), head, write.passages.tobytes(), write.vectors.tobytes()))
    header = _HEADER.pack(_MAGIC, len(body), write.generation, zlib.crc32(body))
    return header + _CRC.pack(zlib.crc32(header)) + body


def _header(raw: bytes, position: int) -> tuple[bytes, int, int, int] | None:
    """Magic, length of the body, generation and checksum of the body, None if no undamaged header is there."""
    header = raw[position : position + _HEADER.size]
    if _CRC.pack(zlib.crc32(header)) != raw[position + _HEADER.size : position + HEAD]:
        return None
    magic, length, generation, checksum = _HEADER.unpack(header)
    return magic, length, generation, checksum


def record_at(raw: bytes, position: int, path: Path, most: int) -> tuple[int, int] | None:
    """Generation and end of the whole record at `position`, None if there is none. Raises CollectionTooNew."""
    if (header := _header(raw, position)) is None:
        return None
    magic, length, generation, checksum = header
    end = position + HEAD + length
    body = memoryview(raw)[position + HEAD : end]
    if magic[:3] != _MAGIC[:3] or len(body) < length or zlib.crc32(body) != checksum or generation > most:
        return None
    if magic != _MAGIC:
        raise CollectionTooNew(path.parent.name, f"{path.name} has writes of format {magic.decode(errors='replace')}")
    return generation, end


def lost_at(raw: bytes, position: int, most: int) -> int | None:
    """`LogPart.lost` of the bytes from `position` on, which are no whole record."""
    if len(raw) - position < HEAD:
        return None
    if (header := _header(raw, position)) is None:
        return 0
    _, length, generation, _ = header
    if len(raw) - position - HEAD < length:
        return None
    return generation if generation <= most else 0


def write_of(generation: int, body: bytes, expected: int | None) -> Write:
    """The write of a body whose checksum is right. Raises what unexpected content makes the libraries raise."""
    (split,) = _CRC.unpack_from(body)
    head = json.loads(body[_CRC.size : _CRC.size + split])
    rows, dimensions = head["shape"]
    if not (isinstance(rows, int) and isinstance(dimensions, int) and rows >= 0 < dimensions):
        raise ValueError("its shape is none")
    if rows and dimensions != (expected or dimensions):
        raise ValueError(f"its vectors have {dimensions} dimensions, not {expected}")
    passages = np.frombuffer(body, np.int32, rows * 3, _CRC.size + split).reshape(rows, 3)
    vectors = np.frombuffer(body, np.float32, rows * dimensions, _CRC.size + split + passages.nbytes)
    documents = tuple(map(document_of, head["documents"]))
    owners = passages[:, 0]
    if rows and not (owners[0] >= 0 and owners[-1] < len(documents) and (np.diff(owners) >= 0).all()):
        raise ValueError("its passages are not those of its documents")
    if not np.isfinite(vectors).all():
        raise ValueError("its vectors are not finite")
    removed = tuple(head["removed"])
    if not all(isinstance(each, str) for each in removed):
        raise ValueError("an id is not a text")
    time = datetime.fromisoformat(head["time"]).astimezone(UTC)
    return Write(generation, time, removed, documents, passages, vectors.reshape(rows, expected or dimensions))


def next_whole(raw: bytes, position: int, path: Path, most: int) -> int | None:
    while (position := raw.find(_MAGIC, position)) >= 0:
        if record_at(raw, position, path, most):
            return position
        position += 1
    return None
