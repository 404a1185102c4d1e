"""A segment: the immutable files of one generation, memory-mapped, so that opening them reads few bytes.

manifest.json                  what it is, and the files with their SHA-256
vectors.npy                    float32 [passages, dimensions], rows of length 1
passages.npy                   int32 [passages, 3]: row of the document, first code point, the one after the last
documents.utf8, .ends.npy      a Document each as JSON
ids.utf8, .ends.npy, .rows.npy the sorted ids, with the rows of their documents
terms.*, postings.*            the metadata (metadata_index.py)
vectors.index                  of large collections: the approximate index (ann_index.py)
"""

import json
import logging
import os
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.domain.models import ModelIdentity
from server.domain.rag import Document
from server.models.artefact import MANIFEST
from server.vectorstore.ann_index import AnnIndex
from server.vectorstore.files import Strings, check_files, read_array, read_strings
from server.vectorstore.layout import FORMAT, generations_on_disk, read_pointer, segment_folder
from server.vectorstore.metadata_index import MetadataIndex, read_metadata_index

log = logging.getLogger(__name__)
VECTORS, PASSAGES, INDEX = "vectors.npy", "passages.npy", "vectors.index"
BROKEN = (OSError, ValueError, KeyError, TypeError)  # raised when a damaged segment is read


@dataclass(frozen=True, eq=False)
class Segment:
    """An opened segment. `passage_starts` int64 [documents + 1]: rows of passages at which documents begin."""

    folder: Path
    generation: int
    created: datetime
    origin: str
    embedder: ModelIdentity
    size_bytes: int
    vectors: NDArray[np.float32]
    passages: NDArray[np.int32]
    passage_starts: NDArray[np.int64]
    documents: Strings
    ids: Strings
    id_rows: NDArray[np.int32]
    metadata: MetadataIndex
    ann: AnnIndex | None

    def document(self, row: int) -> Document:
        """The document of a row."""
        return Document(**json.loads(self.documents[row]))

    def row_of(self, document_id: str) -> int | None:
        """The row of a document, None if it is not here."""
        at = bisect_left(self.ids, document_id)
        return int(self.id_rows[at]) if at < len(self.ids) and self.ids[at] == document_id else None


def read_manifest(folder: Path, collection: str) -> dict[str, Any]:
    """The manifest of a segment. Raises what is in BROKEN if it is damaged or of another segment."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    if manifest.get("format") != FORMAT:
        raise ValueError("it was written in another format")
    if (manifest["collection"], manifest["generation"]) != (collection, int(folder.name)):
        raise ValueError("the manifest is that of another generation")
    return manifest


def read_segment(folder: Path, collection: str, *, check: bool = True) -> Segment:
    """Open a segment; `check` compares every file with the manifest. Raises what is in BROKEN if it is damaged."""
    manifest = read_manifest(folder, collection)
    if check:
        check_files(folder, manifest["files"])
    vectors, passages = read_array(folder / VECTORS), read_array(folder / PASSAGES)
    documents, ids = read_strings(folder, "documents"), read_strings(folder, "ids")
    id_rows = read_array(folder / "ids.rows.npy")
    if vectors.shape != (manifest["passages"], manifest["dimensions"]) or passages.shape != (len(vectors), 3):
        raise ValueError("vectors and passages do not fit the manifest")
    if not len(documents) == len(ids) == len(id_rows) == manifest["documents"]:
        raise ValueError("documents and ids do not fit the manifest")
    counts = np.bincount(passages[:, 0], minlength=len(documents))
    return Segment(
        folder=folder,
        generation=manifest["generation"],
        created=datetime.fromisoformat(manifest["created"]),
        origin=manifest["origin"],
        embedder=ModelIdentity(**manifest["embedder"]),
        size_bytes=sum(entry["bytes"] for entry in manifest["files"].values()),
        vectors=vectors,
        passages=passages,
        passage_starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        documents=documents,
        ids=ids,
        id_rows=id_rows,
        metadata=read_metadata_index(folder),
        ann=AnnIndex(folder / INDEX, **manifest["index"]) if manifest["index"] else None,
    )


def newest_whole(folder: Path, current: int | None, report: Callable[[str], None]) -> Segment | None:
    """The newest segment of a collection up to `current` that is whole; reports those that are not."""
    for generation in _kept(folder, current):
        try:
            return read_segment(segment_folder(folder, generation), folder.name)
        except BROKEN as error:
            report(f"generation {generation} is broken: {error}")
    return None


def kept_segments(folder: Path) -> list[Segment]:
    """The kept segments of a collection, newest first, without those whose manifest cannot be read."""
    found: list[Segment] = []
    for generation in _kept(folder, read_pointer(folder)):
        try:
            found.append(read_segment(segment_folder(folder, generation), folder.name, check=False))
        except BROKEN as error:
            if segment_folder(folder, generation).exists():  # else a fold has just removed it
                log.warning('collection "%s": generation %d is broken: %s', folder.name, generation, error)
    return found


def _kept(folder: Path, current: int | None) -> list[int]:
    return [each for each in reversed(generations_on_disk(folder)) if current is None or each <= current]


def link_files(source: Path, target: Path) -> None:
    """Hard links to all files of a segment but its manifest."""
    for path in source.iterdir():
        if path.name != MANIFEST:
            os.link(path, target / path.name)
