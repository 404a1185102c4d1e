"""The files of one generation of a collection.

manifest.json      collection, generation, embedder, counts, time, and the files with their SHA-256
vectors.npy        float32 [passages, dimensions], rows of length 1
documents.jsonl    one DocumentRecord a line
passages.jsonl     one {"document", "start", "end"} a line, in the order of the vectors
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from server.runtime.artefact import MANIFEST, file_sha256, write_durably

_FILES = _VECTORS, _DOCUMENTS, _PASSAGES = "vectors.npy", "documents.jsonl", "passages.jsonl"


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document as it was added."""

    id: str
    text: str
    title: str = ""
    uri: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EmbedderRecord:
    """Which embedder made the vectors. Vectors of two embedders cannot be compared."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a generation holds. Raises ValueError if the parts do not fit together.

    passages: int32 [n, 3], the columns being the document's index, the first code point and the one after the last.
    vectors: float32 [n, dimensions], rows of length 1.
    """

    embedder: EmbedderRecord
    documents: tuple[DocumentRecord, ...]
    passages: NDArray[np.int32]
    vectors: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise ValueError("vectors must be float32 [passages, dimensions]")
        if self.passages.shape != (len(self.vectors), 3) or self.passages.dtype != np.int32:
            raise ValueError("passages must be int32 [passages, 3], as many as vectors")
        owners = self.passages[:, 0]
        if len(owners) and not (owners.min() >= 0 and owners.max() < len(self.documents)):
            raise ValueError("a passage belongs to no document")


def write_files(folder: Path, collection: str, number: int, updated: datetime, content: Content) -> None:
    """Fill the empty `folder`; return when everything is on disk."""
    with _synced(folder / _VECTORS) as file:
        vectors = np.ascontiguousarray(content.vectors)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(vectors))
        file.write(vectors.data)  # np.save would lose the errno of a full disk
    _write_lines(folder / _DOCUMENTS, map(asdict, content.documents))
    rows = content.passages.tolist()
    _write_lines(folder / _PASSAGES, ({"document": owner, "start": start, "end": end} for owner, start, end in rows))
    manifest = {
        "collection": collection,
        "generation": number,
        "embedder": asdict(content.embedder),
        "dimensions": content.vectors.shape[1],
        "documents": len(content.documents),
        "passages": len(content.vectors),
        "updated": updated.isoformat(),
        "files": {
            name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in _FILES
        },
    }
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")


def read_files(folder: Path, collection: str, number: int) -> tuple[datetime, Content]:
    """When it was written, and what. Raises OSError, ValueError, KeyError or TypeError if it is not whole."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if (manifest["collection"], manifest["generation"]) != (collection, number):
        raise ValueError("the manifest is that of another generation")
    for name in _FILES:
        if file_sha256(folder / name) != manifest["files"][name]["sha256"]:
            raise ValueError(f"{name} does not match its SHA-256")
    rows = [(line["document"], line["start"], line["end"]) for line in _read_lines(folder / _PASSAGES)]
    content = Content(
        embedder=EmbedderRecord(**manifest["embedder"]),
        documents=tuple(DocumentRecord(**line) for line in _read_lines(folder / _DOCUMENTS)),
        passages=np.array(rows, dtype=np.int32).reshape(-1, 3),
        vectors=np.load(folder / _VECTORS, allow_pickle=False),
    )
    return datetime.fromisoformat(manifest["updated"]), content


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    with _synced(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, file)
