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
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.domain.models import ModelIdentity
from server.domain.rag import Document, GenerationInfo
from server.models.artefact import MANIFEST, FileEntry, check_file, write_durably
from server.vectorstore import ann_index
from server.vectorstore.ann_index import AnnIndex
from server.vectorstore.files import Strings, Writer, read_array, read_strings, sorted_positions, with_pauses
from server.vectorstore.layout import FORMAT, committed_generations, read_pointer, segment_folder
from server.vectorstore.metadata_index import MetadataIndex, MetadataIndexWriter, read_metadata_index

logger = logging.getLogger(__name__)
VECTORS, PASSAGES, INDEX = "vectors.npy", "passages.npy", "vectors.index"
BROKEN = (OSError, ValueError, KeyError, TypeError)  # raised when a damaged segment is read


@dataclass(frozen=True, eq=False)
class Segment:
    """An opened segment. `passage_starts` int64 [documents + 1]: rows of passages at which documents begin."""

    collection: str
    info: GenerationInfo
    vectors: NDArray[np.float32]
    passages: NDArray[np.int32]
    passage_starts: NDArray[np.int64]
    documents: Strings
    ids: Strings
    id_rows: NDArray[np.int32]
    metadata: MetadataIndex
    ann: AnnIndex | None

    def document(self, row: int) -> Document:
        return Document(**json.loads(self.documents[row]))

    def row_of(self, document_id: str) -> int | None:
        """The row of a document, None if it is not here."""
        at = bisect_left(self.ids, document_id)
        return int(self.id_rows[at]) if at < len(self.ids) and self.ids[at] == document_id else None


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a segment is written from: documents in their order, and in the same order `passages` and `vectors`.

    Vectors come in parts, each float32 [n, dimensions], so that they need not be in memory together.
    """

    embedder: ModelIdentity
    dimensions: int
    documents: Iterable[Document] = ()
    passages: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 3), np.int32))
    vectors: Iterable[NDArray[np.float32]] = ()


def write_segment(
    folder: Path, collection: str, generation: int, content: Content, *, origin: str, before: AnnIndex | None = None
) -> None:
    """Fill the empty `folder`; return when everything is synced. `origin` is what made it, for instance "fold".

    `before` is the approximate index of the segment that the content was made from.
    """
    writer = Writer(folder)
    writer.rows(VECTORS, (len(content.passages), content.dimensions), np.float32, content.vectors)
    writer.array(PASSAGES, content.passages)
    ids: list[str] = []
    metadata = MetadataIndexWriter()

    def lines() -> Iterator[str]:
        for document in with_pauses(content.documents):
            ids.append(document.id)
            metadata.add(document.metadata)
            yield json.dumps(asdict(document), ensure_ascii=False, separators=(",", ":"))

    writer.strings("documents", lines())
    order = sorted_positions(ids)
    writer.strings("ids", with_pauses(ids[row] for row in order))
    writer.array("ids.rows.npy", np.array(order, np.int32))
    metadata.write(writer)
    index = None
    if len(content.passages) >= ann_index.FLAT_LIMIT:
        with writer.create(INDEX) as file:
            index = ann_index.build_index(read_array(folder / VECTORS), file, before)
    manifest = {
        "format": FORMAT,
        "collection": collection,
        "generation": generation,
        "created": datetime.now(UTC).isoformat(),
        "origin": origin,
        "embedder": asdict(content.embedder),
        "dimensions": content.dimensions,
        "documents": len(ids),
        "passages": len(content.passages),
        "index": index,
        "files": {name: asdict(entry) for name, entry in writer.entries.items()},
    }
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the last file of a segment."""
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")


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
        for name, entry in manifest["files"].items():
            check_file(folder, name, FileEntry(**entry))
    vectors, passages = read_array(folder / VECTORS), read_array(folder / PASSAGES)
    documents, ids = read_strings(folder, "documents"), read_strings(folder, "ids")
    id_rows = read_array(folder / "ids.rows.npy")
    if vectors.shape != (manifest["passages"], manifest["dimensions"]) or passages.shape != (len(vectors), 3):
        raise ValueError("vectors and passages do not fit the manifest")
    if not len(documents) == len(ids) == len(id_rows) == manifest["documents"]:
        raise ValueError("documents and ids do not fit the manifest")
    counts = np.bincount(passages[:, 0], minlength=len(documents))
    return Segment(
        collection=collection,
        info=_info(manifest),
        vectors=vectors,
        passages=passages,
        passage_starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        documents=documents,
        ids=ids,
        id_rows=id_rows,
        metadata=read_metadata_index(folder),
        ann=AnnIndex(folder / INDEX, **manifest["index"]) if manifest["index"] else None,
    )


def kept_generations(folder: Path) -> list[GenerationInfo]:
    """The generations of a collection that have a segment, newest first, without those whose manifest is damaged."""
    found: list[GenerationInfo] = []
    for generation in committed_generations(folder, read_pointer(folder)):
        path = segment_folder(folder, generation)
        try:
            found.append(_info(read_manifest(path, folder.name)))
        except BROKEN as error:
            if path.exists():  # else a fold has just removed it
                logger.warning('collection "%s": generation %d is broken: %s', folder.name, generation, error)
    return found


def _info(manifest: dict[str, Any]) -> GenerationInfo:
    return GenerationInfo(
        generation=manifest["generation"],
        create_time=datetime.fromisoformat(manifest["created"]),
        document_count=manifest["documents"],
        passage_count=manifest["passages"],
        size_bytes=sum(entry["bytes"] for entry in manifest["files"].values()),
        model=ModelIdentity(**manifest["embedder"]),
        origin=manifest["origin"],
    )
